// Fibers, the order in which they run, and launches.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "machine.h"

namespace simt {

Machine machine;

void set_block(const dim3& grid, const dim3& block, const uint3& index);
void set_thread(const uint3& index);

namespace {

constexpr size_t kPage = 4096;
constexpr uint64_t kEndless = 20'000'000;  // accesses of one thread that never waits

std::string triple(const uint3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

// Stacks of all threads, a page without access below each.
uint8_t* stack_of(int thread) {
  static uint8_t* stacks = [] {
    void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for the stacks of the threads");
    return static_cast<uint8_t*>(memory);
  }();
  static int guarded = 0;
  for (; guarded <= thread; ++guarded) mprotect(stacks + guarded * kStackBytes, kPage, PROT_NONE);
  return stacks + thread * kStackBytes;
}

void to_scheduler() { _longjmp(machine.scheduler, 1); }

// What a fiber runs: the kernel, once per block.
void fiber() {
  while (true) {
    machine.body(machine.body_call);
    Thread& self = *machine.current;
    check_meetings_done(self);
    check_stores_done(self);
    check_products_done(self);
    self.state = Thread::exited;
    machine.present[self.warp] &= ~(1u << self.lane);
    if (_setjmp(self.context) == 0) to_scheduler();
  }
}

// Runs a thread until it waits or ends.
void resume(Thread& thread) {
  machine.current = &thread;
  machine.accesses = 0;
  set_thread(thread.index);
  if (_setjmp(machine.scheduler) == 0) {
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = thread.stack + kPage;
    context.uc_stack.ss_size = kStackBytes - kPage;
    context.uc_link = nullptr;
    makecontext(&context, fiber, 0);
    setcontext(&context);
  }
  machine.current = nullptr;
  if (!machine.error.empty()) throw std::runtime_error(machine.error);
}

// The next thread to run, or null. Forward and reverse stay with a warp while it has ready lanes.
Thread* choose(int& warp) {
  const int count = machine.warp_count;
  if (machine.schedule == Schedule::random) {
    const int first = machine.random() % count;
    for (int i = 0; i < count; ++i) {
      const int w = (first + i) % count;
      const uint32_t lanes = machine.ready[w];
      if (!lanes) continue;
      int skip = machine.random() % __builtin_popcount(lanes);
      uint32_t rest = lanes;
      while (skip--) rest &= rest - 1;
      return &machine.threads[w * 32 + __builtin_ctz(rest)];
    }
    return nullptr;
  }
  const bool forward = machine.schedule == Schedule::forward;
  for (int i = 0; i < count; ++i) {
    const uint32_t lanes = machine.ready[warp];
    if (lanes)
      return &machine.threads[warp * 32 +
                              (forward ? __builtin_ctz(lanes) : 31 - __builtin_clz(lanes))];
    warp = (warp + (forward ? 1 : count - 1)) % count;
  }
  return nullptr;
}

[[noreturn]] void deadlock() {
  std::string message = "deadlock: ";
  int shown = 0;
  const Thread* first = nullptr;
  std::string last;
  for (const Thread& t : machine.threads) {
    if (t.state != Thread::waiting) continue;
    if (!first) first = &t;
    const std::string what = t.waits_for + missing_at_barrier(t);
    if (what == last) continue;
    last = what;
    if (++shown <= 8) message += "thread " + triple(t.index) + " and on wait for " + last + "; ";
  }
  const auto exited = std::count_if(machine.threads.begin(), machine.threads.end(),
                                    [](const Thread& t) { return t.state == Thread::exited; });
  message += std::to_string(exited) + " of " + std::to_string(machine.thread_count) +
             " threads have returned";
  machine.error = std::string(machine.kernel) + ": block " + triple(machine.block_index) +
                  ", thread " + triple(first->index) + ": " + message;
  throw std::runtime_error(machine.error);
}

void run_block(const uint3& index) {
  machine.block_index = index;
  ++machine.block_number;
  machine.agents = machine.thread_count;
  machine.mbarriers.clear();
  machine.loads.clear();
  for (auto& group : machine.warpgroups) group.reset();
  for (auto& meetings : machine.meetings) meetings.clear();
  for (NamedBarrier& barrier : machine.barriers) barrier = NamedBarrier();
  set_block(machine.grid, machine.block, index);
  begin_block();
  for (int i = 0; i < machine.thread_count; ++i) {
    Thread& t = machine.threads[i];
    t.id = i;
    t.lane = i % 32;
    t.warp = i / 32;
    const dim3& b = machine.block;
    t.index = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
    t.stack = stack_of(i);
    t.order.assign(kMaxAgents, 0);
    t.order[i] = 1;
    t.async_fences.clear();
    t.mbarrier_fences.clear();
    t.copies.clear();
    t.copy_groups.clear();
    t.stores.clear();
    t.store_groups.clear();
    t.store_agent = -1;
    t.barrier = -1;
    t.waited_mbarrier = nullptr;
    machine.present[t.warp] |= 1u << t.lane;
    t.wgmma_fences = 0;
    t.stack_writes.reset();
    t.in_flight.clear();
    make_ready(t);
  }
  int warp = machine.schedule == Schedule::reverse ? machine.warp_count - 1 : 0;
  while (true) {
    if (Thread* next = choose(warp)) {
      machine.ready[next->warp] &= ~(1u << next->lane);
      resume(*next);
      land_randomly();
      continue;
    }
    const bool done = std::all_of(machine.threads.begin(), machine.threads.end(),
                                  [](const Thread& t) { return t.state == Thread::exited; });
    if (done) return check_loads_done();
    if (!land_a_load()) deadlock();
  }
}

}  // namespace

std::string name_of(const Thread& thread) { return "thread " + triple(thread.index); }

void fail_as(const Thread& thread, const std::string& message) {
  machine.error = std::string(machine.kernel) + ": block " + triple(machine.block_index) + ", " +
                  name_of(thread) + ": " + message;
  if (!machine.current) throw std::runtime_error(machine.error);
  to_scheduler();
  __builtin_unreachable();
}

void fail(const std::string& message) { fail_as(*machine.current, message); }
void fail(const char* message) { fail(std::string(message)); }

void wait(const char* what) {
  Thread& self = *machine.current;
  self.state = Thread::waiting;
  self.waits_for = what;
  if (_setjmp(self.context) == 0) to_scheduler();
}

void make_ready(Thread& thread) {
  thread.state = Thread::ready;
  machine.ready[thread.warp] |= 1u << thread.lane;
}

void note_access() {
  if (++machine.accesses > kEndless)
    fail(
        "runs on without end: it waits in a loop for something that no other thread can do "
        "while it runs (blocks run one after the other)");
}

int Machine::new_agent() {
  if (agents == kMaxAgents) fail("too many mbarriers and storing threads for the executor");
  return agents++;
}

__attribute__((target_clones("avx2", "default"))) void join(Clocks& into, const Clocks& from) {
  if (into.empty()) into.assign(kMaxAgents, 0);
  uint32_t* a = into.data();
  const uint32_t* b = from.data();
  const int count = (machine.agents + 7) & ~7;
  for (int i = 0; i < count; ++i) a[i] = a[i] < b[i] ? b[i] : a[i];
}

void follow(Thread& thread, const Clocks& from) {
  const uint32_t own = thread.order[thread.id];
  memcpy(thread.order.data(), from.data(), machine.agents * sizeof(uint32_t));
  thread.order[thread.id] = own;
}

void release(Thread& thread, Clocks& into) {
  join(into, thread.order);
  ++thread.order[thread.id];
}

void Launch::execute(void (*thread)(void*), void* call) {
  machine.kernel = kernel_;
  machine.grid = grid_;
  machine.block = block_;
  machine.shared_bytes = shared_bytes_;
  machine.schedule = schedule_;
  machine.architecture = architecture_;
  machine.random.seed(seed_);
  machine.body = thread;
  machine.body_call = call;
  machine.error.clear();
  machine.thread_count = block_.x * block_.y * block_.z;
  machine.warp_count = (machine.thread_count + 31) / 32;
  const std::string prefix = std::string(kernel_) + ": ";
  if (machine.thread_count < 1 || machine.thread_count > kMaxThreads)
    throw std::runtime_error(prefix + "a block has 1 to 1024 threads");
  if (shared_bytes_ > kSharedLimit)
    throw std::runtime_error(prefix + "a block has at most 227 KiB of shared memory");
  machine.threads.clear();
  machine.threads.resize(machine.thread_count);
  machine.meetings.assign(machine.warp_count, {});
  machine.ready.assign(machine.warp_count, 0);
  machine.present.assign(machine.warp_count, 0);
  machine.warpgroups.clear();
  machine.warpgroups.resize((machine.warp_count + 3) / 4);
  begin_launch(buffers_);
  const uint64_t blocks = uint64_t{grid_.x} * grid_.y * grid_.z;
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
  if (schedule_ == Schedule::reverse) std::reverse(order.begin(), order.end());
  if (schedule_ == Schedule::random) std::shuffle(order.begin(), order.end(), machine.random);
  for (uint64_t i : order)
    run_block({unsigned(i % grid_.x), unsigned(i / grid_.x % grid_.y),
               unsigned(i / (uint64_t{grid_.x} * grid_.y))});
}

const char* run(const std::function<void()>& launches) {
  static std::string message;
  try {
    launches();
  } catch (const std::exception& error) {
    message = error.what();
    machine.current = nullptr;
    return message.c_str();
  }
  return nullptr;
}

}  // namespace simt
