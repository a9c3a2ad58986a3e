// Products of a warpgroup. Operands are read, and results appear, at the wait; until then the
// accumulators hold NaNs and belong to the products.
#include <algorithm>
#include <cstring>
#include <list>

#include "machine.h"
#include "products.h"

namespace simt {
namespace {

constexpr int kThreads = 128;

// The registers of one D: where they are in each thread, and what they will hold.
struct Accumulators {
  uint32_t* d[kThreads];
  int size;
  std::vector<uint32_t> sums;  // 64 x N
  int products;                // under way
};

struct Operand {
  bool along_mn;
  uint64_t descriptor;
  uint32_t start() const { return (descriptor & 0x3fff) << 4; }
  uint32_t leading() const { return (descriptor >> 16 & 0x3fff) << 4; }
  uint32_t stride() const { return (descriptor >> 32 & 0x3fff) << 4; }
  // Bytes of the rows that are permuted; 16 without swizzle.
  uint32_t width() const { return (const uint32_t[]){16, 128, 64, 32}[descriptor >> 62]; }
};

struct Product {
  Element element;
  int n;
  Operand a, b;
  bool from_registers, accumulate;
  uint32_t rows[64][8];  // A from registers
  Accumulators* accumulators;
};

struct Call {
  Element element;
  int n;
  Operand a, b;
  uint32_t* d;
  const uint32_t* a_registers;
  bool accumulate;
};

// With w = warp % 4, g = lane / 4, t = lane % 4: accumulator i of a thread is in row
// 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2.
int place_of(int thread, int i, int n) {
  const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
  return row * n + 8 * (i / 4) + 2 * (thread % 4) + i % 2;
}

// Shared address of 16 bytes of an operand. Along K: row r, bytes 16 c .. of k. Along M or N: value
// r of k, elements 8 c .. of M or N. See cuda/ptx/wgmma_descriptor.h.
uint32_t chunk_address(const Operand& o, int r, int c) {
  const uint32_t width = o.width();
  uint32_t address = o.start();
  if (width == 16) {
    const uint32_t next_chunk = o.along_mn ? o.stride() : o.leading();
    const uint32_t next_rows = o.along_mn ? o.leading() : o.stride();
    return address + r / 8 * next_rows + r % 8 * 16 + c * next_chunk;
  }
  const int run = o.along_mn ? width / 16 : 1 << 30;  // chunks until the leading offset applies
  address += r / 8 * o.stride() + r % 8 * width + c / run * o.leading() + c % run * 16;
  return address ^ (address >> 3 & (width - 1) & ~15u);
}

const uint8_t* chunk_at(const Operand& o, int r, int c) {
  return shared_memory() + (chunk_address(o, r, c) - kSharedOrigin);
}

// Reads `count` rows (of M or N) of an operand: 8 words of k each.
void gather(const Operand& o, int count, uint32_t (*rows)[8]) {
  if (!o.along_mn) {
    for (int r = 0; r < count; ++r)
      for (int c = 0; c < 2; ++c) memcpy(&rows[r][4 * c], chunk_at(o, r, c), 16);
    return;
  }
  for (int k = 0; k < 16; ++k)
    for (int c = 0; c < count / 8; ++c) {
      uint16_t elements[8];
      memcpy(elements, chunk_at(o, k, c), 16);
      for (int j = 0; j < 8; ++j)
        memcpy(reinterpret_cast<uint8_t*>(rows[8 * c + j]) + 2 * k, &elements[j], 2);
    }
}

void check_operand(const Operand& o, int count, const Actor& who) {
  const uint32_t width = o.width();
  if (o.descriptor >> 49 & 7) fail("wgmma: the executor knows no base offset but 0");
  // Bits 7 and up of the start select the row of the swizzle pattern, which must begin at row 0.
  if (width > 16 && o.start() & (width * 8 - 1) & ~127u)
    fail("wgmma: a swizzled operand does not begin at a multiple of " + std::to_string(width * 8) +
         " bytes (plus the place of k in its first row)");
  for (int r = 0; r < (o.along_mn ? 16 : count); ++r)
    for (int c = 0; c < (o.along_mn ? count / 8 : 2); ++c) {
      note_access();
      check_access(who, chunk_at(o, r, c), 16, Access::read, "wgmma");
    }
}

}  // namespace

struct Warpgroup {
  int agent;
  uint32_t clock = 0;  // groups committed
  const char* meeting = nullptr;
  int arrived = 0;
  void* arguments[kThreads];
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
  std::list<Accumulators> accumulators;
};

void WarpgroupDeleter::operator()(Warpgroup* group) const { delete group; }

namespace {

Warpgroup& own_group() {
  auto& group = machine.warpgroups[machine.current->warp / 4];
  if (!group) {
    group.reset(new Warpgroup);
    group->agent = machine.new_agent();
  }
  return *group;
}

Thread& thread_of(int i) { return machine.threads[machine.current->warp / 4 * kThreads + i]; }

// All 128 threads of the warpgroup come here; the last one runs compute(group).
template <class F>
void meet_group(const char* name, void* arguments, F compute) {
  Thread& self = *machine.current;
  if ((self.warp / 4 + 1) * kThreads > machine.thread_count)
    fail(std::string(name) + " needs four whole warps, the first a multiple of 4");
  Warpgroup& group = own_group();
  if (group.arrived && group.meeting != name)
    fail(std::string("divergent collective: ") + name + " while others of the warpgroup wait in " +
         group.meeting);
  for (int w = self.warp / 4 * 4; w < self.warp / 4 * 4 + 4; ++w)
    if (machine.present[w] != ~0u)
      fail(std::string("divergent collective: ") + name + " needs all of warp " +
           std::to_string(w) + ", of which lanes have returned");
  group.meeting = name;
  group.arguments[self.id % kThreads] = arguments;
  if (++group.arrived < kThreads) {
    wait(name);
    return;
  }
  group.arrived = 0;
  compute(group);
  for (int i = 0; i < kThreads; ++i)
    if (&thread_of(i) != &self) make_ready(thread_of(i));
}

bool touched_since_fence(const Thread& t, const void* begin, size_t bytes) {
  const auto address = static_cast<const uint8_t*>(begin);
  if (address < t.stack || address + bytes > t.stack + kStackBytes) return false;
  const size_t first = (address - t.stack) / 4;
  for (size_t i = first; i < first + bytes / 4; ++i)
    if (t.stack_writes[i] == t.wgmma_fences) return true;
  return false;
}

Accumulators& accumulators_of(Warpgroup& group, int n) {
  const auto d_of = [&](int i) { return static_cast<Call*>(group.arguments[i])->d; };
  for (Accumulators& held : group.accumulators)
    if (held.d[0] == d_of(0) && held.size == n / 2) return held;
  group.accumulators.emplace_back();
  Accumulators& held = group.accumulators.back();
  held.size = n / 2;
  held.sums.resize(64 * n);
  held.products = 0;
  for (int i = 0; i < kThreads; ++i) {
    held.d[i] = d_of(i);
    for (int j = 0; j < n / 2; ++j) {
      held.sums[place_of(i, j, n)] = held.d[i][j];
      held.d[i][j] = kPoison;
    }
    const auto begin = reinterpret_cast<uint8_t*>(held.d[i]);
    thread_of(i).in_flight.push_back({begin, begin + 2 * n});
  }
  return held;
}

void execute(Product& p) {
  std::vector<uint32_t> storage((64 + p.n) * 8);
  auto rows = reinterpret_cast<uint32_t (*)[8]>(storage.data());
  auto columns = rows + 64;
  if (p.from_registers)
    memcpy(rows, p.rows, sizeof p.rows);
  else
    gather(p.a, 64, rows);
  gather(p.b, p.n, columns);
  auto& sums = p.accumulators->sums;
  if (!p.accumulate) std::fill(sums.begin(), sums.end(), 0);
  multiply(p.element, 64, p.n, 8, rows[0], columns[0], 8, sums.data());
  --p.accumulators->products;
}

void deliver(Accumulators& held) {
  for (int i = 0; i < kThreads; ++i) {
    Thread& t = thread_of(i);
    for (int j = 0; j < held.size; ++j) {
      if (held.d[i][j] != kPoison)
        fail_as(t, "the accumulators of a wgmma were written while it was under way");
      held.d[i][j] = held.sums[place_of(i, j, 2 * held.size)];
    }
    const auto begin = reinterpret_cast<uint8_t*>(held.d[i]);
    t.in_flight.erase(std::find_if(t.in_flight.begin(), t.in_flight.end(),
                                   [&](const auto& range) { return range.begin == begin; }));
  }
}

void issue(Warpgroup& group) {
  const Call& first = *static_cast<Call*>(group.arguments[0]);
  Clocks order = thread_of(0).order;
  for (int i = 0; i < kThreads; ++i) {
    const Call& c = *static_cast<Call*>(group.arguments[i]);
    const Thread& t = thread_of(i);
    if (c.element != first.element || c.n != first.n || c.a.descriptor != first.a.descriptor ||
        c.b.descriptor != first.b.descriptor || c.accumulate != first.accumulate ||
        !c.a_registers != !first.a_registers)
      fail_as(t,
              "divergent collective: wgmma with other operands than the warpgroup's first thread");
    if (!t.wgmma_fences) fail_as(t, "wgmma without any wgmma.fence before it");
    if (touched_since_fence(t, c.d, 2 * c.n))
      fail_as(t, "wgmma: its accumulators were written and no wgmma.fence came after that");
    if (c.a_registers && touched_since_fence(t, c.a_registers, 16))
      fail_as(t, "wgmma: its registers of A were written and no wgmma.fence came after that");
    for (int agent = 0; agent < machine.agents; ++agent)
      order[agent] = std::min(order[agent], t.order[agent]);
  }
  const Actor who{machine.current, group.agent, group.clock + 1, &order, Proxy::async};
  if (!first.a_registers) check_operand(first.a, 64, who);
  check_operand(first.b, first.n, who);
  Product p{first.element,
            first.n,
            first.a,
            first.b,
            first.a_registers != nullptr,
            first.accumulate,
            {},
            &accumulators_of(group, first.n)};
  // As register i of A of mma: row g + 8 (i % 2), 32 bits of k from word t + 4 (i / 2) on.
  for (int i = 0; p.from_registers && i < kThreads; ++i)
    for (int r = 0; r < 4; ++r)
      p.rows[i / 32 * 16 + i % 32 / 4 + 8 * (r % 2)][i % 4 + 4 * (r / 2)] =
          static_cast<Call*>(group.arguments[i])->a_registers[r];
  ++p.accumulators->products;
  group.open.push_back(p);
}

}  // namespace

void wgmma(Element element, int n, bool a_along_m, bool b_along_n, void* d,
           const uint32_t* a_registers, uint64_t a, uint64_t b, bool accumulate) {
  Call call{element,     n,         {a_along_m, a}, {b_along_n, b}, static_cast<uint32_t*>(d),
            a_registers, accumulate};
  meet_group("wgmma.mma_async", &call, issue);
}

void wgmma_fence() {
  meet_group("wgmma.fence", nullptr, [](Warpgroup&) {
    for (int i = 0; i < kThreads; ++i) {
      Thread& t = thread_of(i);
      if (!t.stack_writes) t.stack_writes.reset(static_cast<uint32_t*>(calloc(kStackBytes / 4, 4)));
      ++t.wgmma_fences;
    }
  });
}

void wgmma_commit() {
  meet_group("wgmma.commit_group", nullptr, [](Warpgroup& group) {
    ++group.clock;
    group.groups.push_back(std::move(group.open));
    group.open.clear();
  });
}

void wgmma_wait(int pending) {
  static const char* names[8] = {"wgmma.wait_group 0", "wgmma.wait_group 1", "wgmma.wait_group 2",
                                 "wgmma.wait_group 3", "wgmma.wait_group 4", "wgmma.wait_group 5",
                                 "wgmma.wait_group 6", "wgmma.wait_group 7"};
  if (pending < 0 || pending > 7) fail("wgmma.wait_group takes 0 to 7");
  meet_group(names[pending], nullptr, [pending](Warpgroup& group) {
    while (static_cast<int>(group.groups.size()) > pending) {
      for (Product& p : group.groups.front()) execute(p);
      group.groups.pop_front();
    }
    const uint32_t done = group.clock - group.groups.size();
    for (int i = 0; i < kThreads; ++i) {
      uint32_t& seen = thread_of(i).order[group.agent];
      seen = std::max(seen, done);
    }
    for (auto held = group.accumulators.begin(); held != group.accumulators.end();) {
      if (held->products) {
        ++held;
        continue;
      }
      deliver(*held);
      held = group.accumulators.erase(held);
    }
  });
}

void check_products_done(const Thread& thread) {
  if (!thread.in_flight.empty())
    fail_as(thread, "returns while wgmma is under way: nothing waited for it");
}

void check_stack_access(Thread& thread, const uint8_t* address, size_t bytes, bool is_write) {
  for (const auto& range : thread.in_flight)
    if (address < range.end && address + bytes > range.begin)
      fail(std::string(is_write ? "writes" : "reads") +
           " the accumulators of a wgmma that is still under way");
  if (!is_write) return;
  const size_t first = (address - thread.stack) / 4,
               last = (address + bytes - 1 - thread.stack) / 4;
  for (size_t i = first; i <= last; ++i) thread.stack_writes[i] = thread.wgmma_fences;
}

}  // namespace simt
