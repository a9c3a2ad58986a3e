// The state of a running block. Order between threads is kept in vector clocks: a thread's clock
// counts its releases (barrier arrivals, proxy fences), and order[u] is the last clock of u whose
// accesses this thread comes after. Besides threads, the agents that have clocks are what copies
// and multiplies on their behalf: one per warpgroup, per mbarrier, per thread that stores in bulk.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "simt.h"

namespace simt {

constexpr int kMaxThreads = 1024;
constexpr int kMaxAgents = kMaxThreads + 256;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;
constexpr uint32_t kSharedOrigin = 1024;  // so that address 0 is never valid
constexpr uint32_t kPoison = 0x7fc0dead;  // a NaN

using Clocks = std::vector<uint32_t>;

// One cp.async: data not yet delivered.
struct Copy {
  uint8_t* shared;
  const uint8_t* global;
  int bytes, source_bytes;
  bool taken;  // whether `data` was read when the copy was issued
  uint8_t data[16];
};

// One bulk or tensor copy under way. `rows` are the contiguous pieces it consists of.
struct BulkCopy {
  struct Piece {
    uint8_t* shared;
    uint8_t* global;  // null where the box lies outside of the tensor
    uint32_t bytes;
  };
  std::vector<Piece> pieces;
  uint32_t bytes;
  uint64_t* barrier;  // of a load
  int thread;
  Clocks order;    // what the issuing thread came after
  uint32_t clock;  // of a store
};

struct Mbarrier {
  uint64_t* address;
  uint32_t count, pending, phase = 0;
  int64_t expected = 0;  // bytes, may be negative while copies come before their expectation
  int agent;
  uint32_t clock = 0;  // of the copies that report to it
  Clocks arriving, completed;
  std::vector<int> waiters;
};

struct Thread {
  int id, lane, warp;
  uint3 index;
  enum State { ready, waiting, exited } state;
  bool started;
  jmp_buf context;
  uint8_t* stack;
  const char* waits_for;
  uint64_t* waited_mbarrier;                            // or null
  Clocks order;                                         // order[id] is its own clock
  std::vector<uint32_t> async_fences, mbarrier_fences;  // clocks at which it ran the fence
  std::vector<Copy> copies;                             // since the last commit
  std::deque<std::vector<Copy>> copy_groups;
  std::vector<BulkCopy> stores;
  std::deque<std::vector<BulkCopy>> store_groups;
  int store_agent;
  int barrier;        // the named barrier it waits at, or -1
  int barrier_count;  // its predicates, of __syncthreads_count
  // wgmma: when each word of the stack was last written, in fences; registers in flight.
  uint32_t wgmma_fences;
  std::unique_ptr<uint32_t[], decltype(&free)> stack_writes{nullptr, free};
  struct Range {
    const uint8_t* begin;
    const uint8_t* end;
  };
  std::vector<Range> in_flight;
};

// Lanes that wait for the rest of their mask at one collective.
struct Meeting {
  const char* name;
  uint32_t mask, arrived;
  void* arguments[32];
};

struct NamedBarrier {
  int expected = 0, arrived = 0, predicates = 0;
  std::vector<int> waiters;
  Clocks order;
};

struct Warpgroup;  // wgmma.cpp
struct WarpgroupDeleter {
  void operator()(Warpgroup*) const;
};

struct Machine {
  // The launch.
  const char* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  Schedule schedule;
  int architecture;
  std::mt19937_64 random;
  void (*body)(void*);
  void* body_call;
  int thread_count, warp_count;
  // The block.
  uint3 block_index;
  uint32_t block_number;  // counts all blocks of all launches
  int agents;
  std::vector<Thread> threads;
  std::vector<std::vector<Meeting>> meetings;  // per warp
  std::vector<uint32_t> ready;                 // lanes per warp
  std::vector<uint32_t> present;               // lanes per warp that have not returned
  NamedBarrier barriers[16];
  std::deque<Mbarrier> mbarriers;
  std::vector<BulkCopy> loads;
  std::vector<std::unique_ptr<Warpgroup, WarpgroupDeleter>> warpgroups;
  Thread* current = nullptr;
  jmp_buf scheduler;
  std::string error;
  uint64_t accesses;  // since a thread last waited

  int new_agent();
  bool chance(int one_in) { return schedule == Schedule::random && random() % one_in == 0; }
};
extern Machine machine;

// ---- scheduler.cpp
// Gives way until another thread makes this one ready again.
void wait(const char* what);
void make_ready(Thread& thread);
std::string name_of(const Thread& thread);
[[noreturn]] void fail(const std::string& message);
// As fail(), for another thread than the running one.
[[noreturn]] void fail_as(const Thread& thread, const std::string& message);
// ---- copies.cpp: fails when the thread returns with copies under way.
void check_stores_done(const Thread& thread);
// When all threads have returned.
void check_loads_done();
// Lets a load land, when no thread can run; false when there is none.
bool land_a_load();
void land_randomly();
// Counts an access; a thread that makes too many without waiting fails.
void note_access();

void join(Clocks& into, const Clocks& from);
// Makes the thread come after everything in `from`, which includes all it came after before.
void follow(Thread& thread, const Clocks& from);
// Publishes what the thread did: joins its order into `into` and begins a new clock.
void release(Thread& thread, Clocks& into);

// Waits for all lanes of `mask`; the last one runs compute(arguments by lane).
void meet(const char* name, uint32_t mask, void* arguments,
          const std::function<void(Meeting&)>& compute);

// Fails when the thread returns while lanes wait for it.
void check_meetings_done(const Thread& thread);

// What is missing at the barrier where the thread waits.
std::string missing_at_barrier(const Thread& thread);

// ---- memory.cpp
enum class Access : uint8_t { read, write, atomic };
enum class Proxy : uint8_t { generic, async };

// Who accesses memory: `thread` for messages; agent and clock to record; order to compare with.
struct Actor {
  const Thread* thread;
  int agent;
  uint32_t clock;
  const Clocks* order;
  Proxy proxy = Proxy::generic;
};
Actor actor(const Thread& thread);
// Checks and records an access; fails when it is wrong.
void check_access(const Actor& who, const void* pointer, size_t bytes, Access access,
                  const char* instruction);
// A copy that will write here: checked as a write, unreadable until check_access(... write) by the
// copy itself, after which it is as any other memory.
void begin_copy(const Actor& who, void* shared, size_t bytes, const char* instruction);
void end_copy(const Actor& who, void* shared, size_t bytes, const char* instruction);
// Marks 8 bytes as an mbarrier (or not): ordinary accesses fail.
void mark_mbarrier(void* address, bool is_mbarrier);
// That the initialization of the mbarrier comes before this use of it, for copies also a fence.
void check_mbarrier_use(const Actor& who, const void* address, const char* instruction);
bool is_shared(const void* pointer);
void note_global_atomic();
void begin_launch(const std::vector<Buffer>& buffers);
void begin_block();

// ---- wgmma.cpp
// Fails when the thread returns with products under way.
void check_products_done(const Thread& thread);
void check_stack_access(Thread& thread, const uint8_t* address, size_t bytes, bool is_write);

}  // namespace simt
