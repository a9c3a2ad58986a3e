// Collectives of a warp. Fragment layouts are those of the PTX ISA, chapters "mma" and "ldmatrix".
#include <cmath>
#include <cstring>

#include "machine.h"
#include "products.h"

namespace simt {
namespace {

std::string lanes_of(uint32_t mask) {
  std::string text;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) text += (text.empty() ? "" : " ") + std::to_string(lane);
  return text;
}

// Lane j of this warp can never come to the meeting that lane `self.lane` is at.
[[noreturn]] void diverged(const Thread& self, const char* name, int lane, const std::string& why) {
  fail_as(self, std::string("divergent collective: ") + name + " needs lane " +
                    std::to_string(lane) + " of the warp, which " + why);
}

}  // namespace

void meet(const char* name, uint32_t mask, void* arguments,
          const std::function<void(Meeting&)>& compute) {
  Thread& self = *machine.current;
  const uint32_t own = 1u << self.lane;
  if (!(mask & own)) fail_as(self, std::string(name) + " has a mask without the calling lane");
  auto& meetings = machine.meetings[self.warp];
  Meeting* joined = nullptr;
  for (Meeting& m : meetings) {
    if (m.name == name && m.mask == mask)
      joined = &m;
    else if ((m.mask & own) && (m.arrived & mask))
      diverged(self, name, __builtin_ctz(m.arrived & mask), std::string("waits in ") + m.name);
  }
  if (!joined) {
    meetings.push_back({name, mask, 0, {}});
    joined = &meetings.back();
  }
  joined->arrived |= own;
  joined->arguments[self.lane] = arguments;
  if (const uint32_t absent = mask & ~machine.present[self.warp]) {
    const int lane = __builtin_ctz(absent);
    const bool exists = self.warp * 32 + lane < machine.thread_count;
    diverged(self, name, lane, exists ? "has returned" : "the block does not have");
  }
  if (joined->arrived != mask) {
    wait(name);
    return;
  }
  Meeting complete = *joined;
  meetings.erase(meetings.begin() + (joined - meetings.data()));
  compute(complete);
  for (int lane = 0; lane < 32; ++lane) {
    Thread& other = machine.threads[self.warp * 32 + lane];
    // Lanes that met at a barrier of the block may have to wait there.
    if (((mask & ~own) >> lane & 1) && other.barrier < 0) make_ready(other);
  }
  if (machine.chance(2)) {
    make_ready(self);
    wait(name);
  }
}

void check_meetings_done(const Thread& thread) {
  for (const Meeting& m : machine.meetings[thread.warp])
    if (m.mask >> thread.lane & 1)
      diverged(machine.threads[thread.warp * 32 + __builtin_ctz(m.arrived)], m.name, thread.lane,
               "has returned");
}

void warp_sync(uint32_t mask) {
  meet("__syncwarp", mask, nullptr, [](Meeting& m) {
    const int first = machine.current->warp * 32;
    Clocks all;
    for (int lane = 0; lane < 32; ++lane)
      if (m.mask >> lane & 1) release(machine.threads[first + lane], all);
    for (int lane = 0; lane < 32; ++lane)
      if (m.mask >> lane & 1) follow(machine.threads[first + lane], all);
  });
}

namespace {

struct ShuffleCall {
  uint32_t value, result;
  int operand, width;
};

// PTX ISA, "shfl.sync": which lane's value a lane gets; its own where that is out of its segment.
int source_lane(Shuffle kind, int lane, int operand, int width) {
  const int begin = lane & ~(width - 1), end = begin + width - 1;
  int source = lane;
  switch (kind) {
    case Shuffle::index: return begin | (operand & (width - 1));
    case Shuffle::up: source = lane - operand; return source < begin ? lane : source;
    case Shuffle::down: source = lane + operand; break;
    case Shuffle::exclusive_or: source = lane ^ operand; break;
  }
  return source > end ? lane : source;
}

}  // namespace

uint32_t shuffle(Shuffle kind, uint32_t mask, uint32_t value, int operand, int width) {
  static const char* names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                "__shfl_xor_sync"};
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail("a shuffle's width must be a power of two, at most 32");
  ShuffleCall call{value, 0, operand, width};
  meet(names[static_cast<int>(kind)], mask, &call, [kind](Meeting& m) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(m.mask >> lane & 1)) continue;
      auto& c = *static_cast<ShuffleCall*>(m.arguments[lane]);
      const int source = source_lane(kind, lane, c.operand, c.width);
      if (!(m.mask >> source & 1))
        fail_as(machine.threads[machine.current->warp * 32 + lane],
                "a shuffle takes the value of lane " + std::to_string(source) +
                    ", which does not take part (lanes " + lanes_of(m.mask) + " do)");
      c.result = static_cast<ShuffleCall*>(m.arguments[source])->value;
    }
  });
  return call.result;
}

uint32_t ballot(uint32_t mask, bool predicate) {
  struct Call {
    bool predicate;
    uint32_t result;
  } call{predicate, 0};
  meet("vote.sync", mask, &call, [](Meeting& m) {
    uint32_t all = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (m.mask >> lane & 1)
        all |= uint32_t{static_cast<Call*>(m.arguments[lane])->predicate} << lane;
    for (int lane = 0; lane < 32; ++lane)
      if (m.mask >> lane & 1) static_cast<Call*>(m.arguments[lane])->result = all;
  });
  return call.result;
}

namespace {

struct MatrixCall {
  uint32_t* loaded;
  const uint32_t* stored;
  const uint8_t* row;
};

// The row of matrix `i` whose address lane 8 i + r gave; checked as an access of that lane.
uint8_t* row_of(Meeting& m, int i, int r, Access access, const char* instruction) {
  const int lane = 8 * i + r;
  auto row = const_cast<uint8_t*>(static_cast<MatrixCall*>(m.arguments[lane])->row);
  const Thread& thread = machine.threads[machine.current->warp * 32 + lane];
  if (!is_shared(row))
    fail_as(thread, std::string(instruction) + ": the row is not in shared memory");
  if (reinterpret_cast<uintptr_t>(row) % 16)
    fail_as(thread, std::string(instruction) + ": misaligned, a row begins at a multiple of 16");
  note_access();
  check_access(actor(thread), row, 16, access, instruction);
  return row;
}

}  // namespace

// Register i of lane l holds elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of matrix i, or
// of its transpose.
void load_matrix(uint32_t* registers, int matrices, bool transposed, const void* row) {
  static const char* names[] = {"ldmatrix.x1",       "ldmatrix.x2",       "ldmatrix.x4",
                                "ldmatrix.x1.trans", "ldmatrix.x2.trans", "ldmatrix.x4.trans"};
  const char* name = names[(matrices == 4 ? 2 : matrices - 1) + (transposed ? 3 : 0)];
  MatrixCall call{registers, nullptr, static_cast<const uint8_t*>(row)};
  meet(name, ~0u, &call, [&](Meeting& m) {
    for (int i = 0; i < matrices; ++i) {
      uint16_t elements[8][8];
      for (int r = 0; r < 8; ++r) memcpy(elements[r], row_of(m, i, r, Access::read, name), 16);
      for (int lane = 0; lane < 32; ++lane) {
        const int r = lane / 4, c = 2 * (lane % 4);
        const uint32_t low = transposed ? elements[c][r] : elements[r][c];
        const uint32_t high = transposed ? elements[c + 1][r] : elements[r][c + 1];
        static_cast<MatrixCall*>(m.arguments[lane])->loaded[i] = low | high << 16;
      }
    }
  });
}

void store_matrix(void* row, int matrices, bool transposed, const uint32_t* registers) {
  static const char* names[] = {"stmatrix.x1",       "stmatrix.x2",       "stmatrix.x4",
                                "stmatrix.x1.trans", "stmatrix.x2.trans", "stmatrix.x4.trans"};
  const char* name = names[(matrices == 4 ? 2 : matrices - 1) + (transposed ? 3 : 0)];
  MatrixCall call{nullptr, registers, static_cast<const uint8_t*>(row)};
  meet(name, ~0u, &call, [&](Meeting& m) {
    for (int i = 0; i < matrices; ++i) {
      uint16_t elements[8][8];
      for (int lane = 0; lane < 32; ++lane) {
        const int r = lane / 4, c = 2 * (lane % 4);
        const uint32_t pair = static_cast<MatrixCall*>(m.arguments[lane])->stored[i];
        (transposed ? elements[c][r] : elements[r][c]) = pair;
        (transposed ? elements[c + 1][r] : elements[r][c + 1]) = pair >> 16;
      }
      for (int r = 0; r < 8; ++r) memcpy(row_of(m, i, r, Access::write, name), elements[r], 16);
    }
  });
}

namespace {

struct MmaCall {
  void* d;
  const uint32_t *a, *b;
};

const char* mma_name(Element element, int k) {
  switch (element) {
    case Element::bf16: return "mma.m16n8k16.bf16";
    case Element::f16: return "mma.m16n8k16.f16";
    case Element::tf32: return "mma.m16n8k8.tf32";
    case Element::s8: return "mma.m16n8k32.s8";
    case Element::b1_and: return k == 128 ? "mma.m16n8k128.b1.and" : "mma.m16n8k256.b1.and";
    case Element::b1_xor: return k == 128 ? "mma.m16n8k128.b1.xor" : "mma.m16n8k256.b1.xor";
    case Element::e4m3: break;
  }
  return "mma";
}

}  // namespace

// With g = lane / 4 and t = lane % 4, register i of A holds row g + 8 (i % 2) and 32 bits of k from
// 32 (t + 4 (i / 2)) on; register i of B column g and 32 bits of k from 32 (t + 4 i) on;
// accumulator i row g + 8 (i / 2), column 2 t + i % 2.
void mma(Element element, int k, void* d, const uint32_t* a, const uint32_t* b) {
  MmaCall call{d, a, b};
  meet(mma_name(element, k), ~0u, &call, [element, k](Meeting& m) {
    const int words = k * element_bits(element) / 32;  // of a row: 4 per register of B
    uint32_t rows[16][8], columns[8][8], sums[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& c = *static_cast<MmaCall*>(m.arguments[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < words / 4; ++i) {
        rows[g][t + 4 * i] = c.a[2 * i];
        rows[g + 8][t + 4 * i] = c.a[2 * i + 1];
        columns[g][t + 4 * i] = c.b[i];
      }
      uint32_t held[4];
      memcpy(held, c.d, 16);
      for (int i = 0; i < 4; ++i) sums[g + 8 * (i / 2)][2 * t + i % 2] = held[i];
    }
    multiply(element, 16, 8, words, &rows[0][0], &columns[0][0], 8, &sums[0][0]);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      uint32_t held[4];
      for (int i = 0; i < 4; ++i) held[i] = sums[g + 8 * (i / 2)][2 * t + i % 2];
      memcpy(static_cast<MmaCall*>(m.arguments[lane])->d, held, 16);
    }
  });
}

void set_max_registers(int registers, bool up) {
  (void)registers;
  meet(up ? "setmaxnreg.inc" : "setmaxnreg.dec", ~0u, nullptr, [](Meeting&) {});
}

}  // namespace simt
