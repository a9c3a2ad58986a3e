// What memory a kernel may touch, when, and in which order: the calls that g++ makes before every
// access of a kernel (-fsanitize=thread, with these functions instead of its library), and the
// accesses that instructions make.
// Each aligned word of checked memory remembers the accesses that a later one may conflict with.
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "machine.h"

namespace simt {
namespace {

struct Record {
  uint32_t clock;
  uint32_t block;
  uint16_t agent;
  uint8_t bytes : 4;  // which of the word's four
  uint8_t access : 2;
  uint8_t async : 1;
};

struct Word {
  uint8_t written : 4;    // bytes that hold something
  uint8_t in_flight : 4;  // bytes an asynchronous copy is writing
  uint8_t is_mbarrier;
  uint16_t count;
  uint32_t more;  // index + 1 into `overflow`, for records past the third
  Record records[3];
};

struct Region {
  uint8_t* begin;
  uint8_t* end;
  bool writable;
  Word* words;  // null: only bounds are checked
};

alignas(1024) uint8_t shared_arena[kSharedLimit + 1024];
std::vector<Word> shared_words;
std::vector<Region> regions;
std::deque<std::vector<Record>> overflow[2];  // of global memory, of shared memory
uint32_t first_block;                         // of this launch
std::vector<Region> images;                   // the case's own constants
bool block_used_atomics;
std::vector<bool> fenced_blocks;  // that ran __threadfence, by number in the launch

const char* verb(Access access) {
  return access == Access::read ? "reads " : access == Access::write ? "writes " : "updates ";
}

std::string where(const void* pointer, size_t bytes) {
  const auto address = static_cast<const uint8_t*>(pointer);
  const std::string size = std::to_string(bytes) + " bytes at ";
  if (address >= shared_arena && address < shared_arena + sizeof shared_arena)
    return size + "shared offset " + std::to_string(address - shared_arena);
  for (size_t i = 0; i < regions.size(); ++i)
    if (address >= regions[i].begin && address < regions[i].end)
      return size + "offset " + std::to_string(address - regions[i].begin) + " of global buffer " +
             std::to_string(i);
  char text[40];
  snprintf(text, sizeof text, "address %p", pointer);
  return size + text;
}

std::string who_did(const Record& r) {
  std::string name;
  if (r.agent < machine.thread_count)
    name = name_of(machine.threads[r.agent]);
  else
    name = "an asynchronous copy or product";
  if (r.block != machine.block_number) name += " of another block";
  return name;
}

// Whether an access of another block of this launch surely came before: it published with
// __threadfence and we looked with an atomic.
bool ordered_across_blocks(const Record& r) {
  return block_used_atomics && fenced_blocks[r.block - first_block];
}

// Whether the writing thread ran `fences` after the access and before it handed over to us.
bool fenced(const std::vector<uint32_t>& fences, const Record& r, const Clocks& order) {
  const auto f = std::lower_bound(fences.begin(), fences.end(), r.clock);
  return f != fences.end() && *f < order[r.agent];
}

struct Site {
  const Actor& who;
  const void* pointer;
  size_t bytes;
  Access access;
  const char* instruction;

  [[noreturn]] void fail(const std::string& what) const {
    fail_as(*who.thread, std::string(instruction) + (*instruction ? " " : "") + verb(access) +
                             where(pointer, bytes) + ": " + what);
  }
};

// Checks an earlier access to a word against a new one to `bytes` of it, and forgets what of the
// earlier one can no longer be the first to conflict with anything.
void compare(Record& r, uint8_t bytes, const Site& site, bool shared) {
  const Actor& who = site.who;
  const uint8_t overlap = r.bytes & bytes;
  const bool is_write = site.access != Access::read;
  if (r.block < first_block) {
    r.bytes = 0;
    return;
  }
  const bool ordered =
      r.block == machine.block_number ? r.clock <= (*who.order)[r.agent] : ordered_across_blocks(r);
  const auto before = static_cast<Access>(r.access);
  if (overlap && (is_write || before != Access::read)) {
    const bool both_atomic = before == Access::atomic && site.access == Access::atomic;
    if (!ordered && !both_atomic)
      site.fail(std::string("race: ") + who_did(r) +
                (before == Access::read    ? " read"
                 : before == Access::write ? " wrote"
                                           : " updated") +
                " it, and nothing orders the two");
    if (shared && who.proxy == Proxy::async && !r.async && before != Access::read &&
        !fenced(machine.threads[r.agent].async_fences, r, *who.order))
      site.fail("written by " + who_did(r) +
                " with no fence.proxy.async between that and the barrier");
  }
  // A later access that is ordered after this one is ordered after the recorded one too.
  if (overlap && ordered && (is_write || before == Access::read)) r.bytes &= ~bytes;
}

void touch(Word& word, uint8_t bytes, const Site& site, bool shared) {
  std::vector<Record>* rest = word.more ? &overflow[shared][word.more - 1] : nullptr;
  int kept = 0;
  for (int i = 0; i < std::min<int>(word.count, 3); ++i) {
    compare(word.records[i], bytes, site, shared);
    if (word.records[i].bytes) word.records[kept++] = word.records[i];
  }
  if (rest) {
    size_t kept_rest = 0;
    for (size_t i = 0; i < rest->size(); ++i) {
      compare((*rest)[i], bytes, site, shared);
      if ((*rest)[i].bytes) (*rest)[kept_rest++] = (*rest)[i];
    }
    rest->resize(kept_rest);
    while (kept < 3 && !rest->empty()) {
      word.records[kept++] = rest->back();
      rest->pop_back();
    }
  }
  word.count = kept;
  const Record added{site.who.clock,
                     machine.block_number,
                     static_cast<uint16_t>(site.who.agent),
                     bytes,
                     static_cast<uint8_t>(site.access),
                     site.who.proxy == Proxy::async};
  if (kept < 3) {
    word.records[word.count++] = added;
    return;
  }
  if (!rest) {
    overflow[shared].emplace_back();
    word.more = overflow[shared].size();
    rest = &overflow[shared].back();
  }
  rest->push_back(added);
}

// Calls f(word, bytes of it) for every word that [offset, offset + bytes) touches.
template <class F>
void each_word(Word* words, size_t offset, size_t bytes, F f) {
  while (bytes) {
    const size_t first = offset % 4, count = std::min(bytes, 4 - first);
    f(words[offset / 4], static_cast<uint8_t>(((1u << count) - 1) << first));
    offset += count;
    bytes -= count;
  }
}

size_t shared_offset(const Site& site) {
  const auto address = static_cast<const uint8_t*>(site.pointer);
  const size_t offset = address - shared_arena;
  if (offset + site.bytes > machine.shared_bytes)
    site.fail("out of bounds: the block has " + std::to_string(machine.shared_bytes) +
              " bytes of shared memory");
  return offset;
}

void check_shared(const Site& site) {
  each_word(shared_words.data(), shared_offset(site), site.bytes, [&](Word& word, uint8_t bytes) {
    if (word.is_mbarrier) site.fail("an mbarrier lies there");
    if (word.in_flight & bytes) site.fail("a copy to it is still under way: nothing waited for it");
    if (site.access == Access::write)
      word.written |= bytes;
    else if (bytes & ~word.written)
      site.fail("nobody wrote it");
    touch(word, bytes, site, true);
  });
}

const Region* find(const std::vector<Region>& in, const uint8_t* begin, size_t bytes,
                   bool writable) {
  for (const Region& r : in)
    if (begin >= r.begin && begin + bytes <= r.end && (r.writable || !writable)) return &r;
  return nullptr;
}

void check_global(const Site& site) {
  const auto address = static_cast<const uint8_t*>(site.pointer);
  const Region* region = find(regions, address, site.bytes, site.access != Access::read);
  if (!region) {
    if (find(regions, address, site.bytes, false)) site.fail("the buffer is read-only");
    if (site.access == Access::read && find(images, address, site.bytes, false)) return;
    site.fail("out of bounds of every buffer of the launch");
  }
  if (region->words)
    each_word(region->words, address - region->begin, site.bytes,
              [&](Word& word, uint8_t bytes) { touch(word, bytes, site, false); });
}

int add_image(dl_phdr_info* info, size_t, void* self) {
  bool is_ours = false;
  std::vector<Region> found;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const auto begin = reinterpret_cast<uint8_t*>(info->dlpi_addr + segment.p_vaddr);
    found.push_back({begin, begin + segment.p_memsz, false, nullptr});
    is_ours |= self >= begin && self < begin + segment.p_memsz;
  }
  if (is_ours) images = found;
  return is_ours;
}

// The calls before accesses.
void hook(void* pointer, size_t bytes, Access access, bool aligned) {
  Thread* thread = machine.current;
  if (!thread) return;
  const auto address = static_cast<uint8_t*>(pointer);
  if (address >= thread->stack && address < thread->stack + kStackBytes) {
    if (thread->wgmma_fences) check_stack_access(*thread, address, bytes, access == Access::write);
    return;
  }
  note_access();
  const Actor who = actor(*thread);
  if (aligned && reinterpret_cast<uintptr_t>(pointer) % bytes)
    Site{who, pointer, bytes, access, ""}.fail("misaligned");
  check_access(who, pointer, bytes, access, "");
}

}  // namespace

Actor actor(const Thread& thread) {
  return {&thread, thread.id, thread.order[thread.id], &thread.order};
}

bool is_shared(const void* pointer) {
  return pointer >= shared_arena && pointer < shared_arena + sizeof shared_arena;
}

uint8_t* shared_memory() { return shared_arena; }
int architecture() { return machine.architecture; }

uint32_t shared_address(const void* pointer) {
  if (!is_shared(pointer)) fail("takes the shared address of something outside shared memory");
  return kSharedOrigin + (static_cast<const uint8_t*>(pointer) - shared_arena);
}

void check_access(const Actor& who, const void* pointer, size_t bytes, Access access,
                  const char* instruction) {
  const Site site{who, pointer, bytes, access, instruction};
  if (is_shared(pointer))
    check_shared(site);
  else
    check_global(site);
}

void begin_copy(const Actor& who, void* shared, size_t bytes, const char* instruction) {
  if (!is_shared(shared))
    fail_as(*who.thread, std::string(instruction) + " must write to shared memory");
  check_access(who, shared, bytes, Access::write, instruction);
  const size_t offset = static_cast<uint8_t*>(shared) - shared_arena;
  each_word(shared_words.data(), offset, bytes,
            [](Word& word, uint8_t which) { word.in_flight |= which; });
  memset(shared, 0xff, bytes);
}

void end_copy(const Actor& who, void* shared, size_t bytes, const char* instruction) {
  const size_t offset = static_cast<uint8_t*>(shared) - shared_arena;
  each_word(shared_words.data(), offset, bytes,
            [](Word& word, uint8_t which) { word.in_flight &= ~which; });
  check_access(who, shared, bytes, Access::write, instruction);
}

void mark_mbarrier(void* address, bool is_mbarrier) {
  const size_t offset = static_cast<uint8_t*>(address) - shared_arena;
  each_word(shared_words.data(), offset, 8, [&](Word& word, uint8_t) {
    word.is_mbarrier = is_mbarrier;
    if (!is_mbarrier) word.written = 0;
  });
}

void check_mbarrier_use(const Actor& who, const void* address, const char* instruction) {
  const Site site{who, address, 8, Access::atomic, instruction};
  each_word(shared_words.data(), shared_offset(site), 8, [&](Word& word, uint8_t) {
    const Record& r = word.records[0];
    if (r.clock > (*who.order)[r.agent])
      site.fail("race: " + who_did(r) + " initialized the mbarrier, and nothing orders the two");
    const Thread& writer = machine.threads[r.agent];
    if (who.proxy == Proxy::async && !fenced(writer.mbarrier_fences, r, *who.order) &&
        !fenced(writer.async_fences, r, *who.order))
      site.fail(who_did(r) + " initialized the mbarrier with no fence.mbarrier_init after it");
  });
}

void note_global_atomic() { block_used_atomics = true; }

void thread_fence() { fenced_blocks[machine.block_number - first_block] = true; }

void begin_launch(const std::vector<Buffer>& buffers) {
  if (images.empty()) dl_iterate_phdr(add_image, reinterpret_cast<void*>(&begin_launch));
  for (Region& r : regions) free(r.words);
  regions.clear();
  overflow[0].clear();
  for (const Buffer& b : buffers) {
    const size_t count = (b.end - b.begin + 3) / 4;
    Word* words = b.writable ? static_cast<Word*>(calloc(count, sizeof(Word))) : nullptr;
    regions.push_back(
        {const_cast<uint8_t*>(b.begin), const_cast<uint8_t*>(b.end), b.writable, words});
  }
  first_block = machine.block_number + 1;
  fenced_blocks.assign(uint64_t{machine.grid.x} * machine.grid.y * machine.grid.z, false);
}

void begin_block() {
  overflow[1].clear();
  shared_words.assign((machine.shared_bytes + 3) / 4, Word());
  // Bytes 0xff make NaNs of every floating-point format.
  memset(shared_arena, 0xff, machine.shared_bytes);
  block_used_atomics = false;
}

}  // namespace simt

#define TAUT_SIMT_HOOKS(bytes)                                                        \
  void __tsan_read##bytes(void* p) { hook(p, bytes, Access::read, true); }            \
  void __tsan_write##bytes(void* p) { hook(p, bytes, Access::write, true); }          \
  void __tsan_unaligned_read##bytes(void* p) { hook(p, bytes, Access::read, false); } \
  void __tsan_unaligned_write##bytes(void* p) { hook(p, bytes, Access::write, false); }

extern "C" {
using namespace simt;
void __tsan_init() {}
TAUT_SIMT_HOOKS(1)
TAUT_SIMT_HOOKS(2)
TAUT_SIMT_HOOKS(4)
TAUT_SIMT_HOOKS(8)
TAUT_SIMT_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { hook(p, bytes, Access::read, false); }
void __tsan_write_range(void* p, size_t bytes) { hook(p, bytes, Access::write, false); }
}
