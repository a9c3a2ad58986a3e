// Barriers of the block, mbarriers, fences, atomics.
#include <algorithm>

#include "machine.h"

namespace simt {
namespace {

const char* barrier_name(int id, bool waits) {
  static std::string names[2][16];
  std::string& name = names[waits][id];
  if (name.empty()) {
    name = (waits ? "bar.sync " : "bar.arrive ") + std::to_string(id);
    if (id == 0) name += " (__syncthreads)";
  }
  return name.c_str();
}

// One warp comes to a barrier. Barriers count whole warps, so its lanes meet first.
void arrive_at(int id, int threads, bool waits, bool predicate) {
  Thread& self = *machine.current;
  if (id < 0 || id > 15) fail("a barrier's id must be 0 to 15");
  if (threads < 1 || (threads % 32 && threads != machine.thread_count))
    fail("a barrier's number of threads must be a multiple of 32");
  const char* name = barrier_name(id, waits);
  const int lanes = std::min(32, machine.thread_count - self.warp * 32);
  const uint32_t mask = lanes == 32 ? ~0u : (1u << lanes) - 1;
  struct Call {
    int threads;
    bool predicate;
  } call{threads, predicate};
  meet(name, mask, &call, [=](Meeting& m) {
    NamedBarrier& barrier = machine.barriers[id];
    for (int lane = 0; lane < lanes; ++lane) {
      Thread& t = machine.threads[machine.current->warp * 32 + lane];
      const Call& c = *static_cast<Call*>(m.arguments[lane]);
      if (!barrier.arrived) barrier.expected = c.threads;
      if (c.threads != barrier.expected)
        fail_as(t, std::string(name) + " expects " + std::to_string(c.threads) +
                       " threads, but those that came before expect " +
                       std::to_string(barrier.expected));
      if (++barrier.arrived > barrier.expected)
        fail_as(t, std::string(name) + ": more threads arrive than the " +
                       std::to_string(barrier.expected) + " expected");
      barrier.predicates += c.predicate;
      release(t, barrier.order);
      if (waits) {
        t.barrier = id;
        barrier.waiters.push_back(t.id);
      }
    }
    if (barrier.arrived < barrier.expected) return;
    for (int waiter : barrier.waiters) {
      Thread& t = machine.threads[waiter];
      t.barrier = -1;
      t.barrier_count = barrier.predicates;
      follow(t, barrier.order);
      if (&t != machine.current) make_ready(t);
    }
    barrier = NamedBarrier();
  });
  if (waits && self.barrier == id) wait(name);
}

Mbarrier& mbarrier_at(uint64_t* address, const char* instruction) {
  for (Mbarrier& m : machine.mbarriers)
    if (m.address == address) return m;
  fail(std::string(instruction) + ": no mbarrier was initialized there");
}

}  // namespace

std::string missing_at_barrier(const Thread& thread) {
  if (thread.barrier >= 0) {
    const NamedBarrier& b = machine.barriers[thread.barrier];
    return ", at which " + std::to_string(b.arrived) + " of " + std::to_string(b.expected) +
           " threads have arrived";
  }
  for (const Mbarrier& m : machine.mbarriers)
    if (thread.waited_mbarrier && m.address == thread.waited_mbarrier)
      return " of the mbarrier at shared offset " +
             std::to_string(reinterpret_cast<uint8_t*>(m.address) - shared_memory()) + ", parity " +
             std::to_string(m.phase % 2) + " (" + std::to_string(m.pending) + " arrivals and " +
             std::to_string(m.expected) + " bytes are missing)";
  return "";
}

void block_sync() { arrive_at(0, machine.thread_count, true, false); }

int block_sync_count(int predicate) {
  arrive_at(0, machine.thread_count, true, predicate != 0);
  return machine.current->barrier_count;
}

void barrier_sync(int id, int threads) { arrive_at(id, threads, true, false); }

void barrier_arrive(int id, int threads) { arrive_at(id, threads, false, false); }

void mbarrier_init(uint64_t* barrier, uint32_t count) {
  Thread& self = *machine.current;
  if (!is_shared(barrier) || reinterpret_cast<uintptr_t>(barrier) % 8)
    fail("mbarrier.init needs an 8-byte aligned address in shared memory");
  if (count < 1 || count >= 1u << 20) fail("mbarrier.init: the count must be 1 to 2^20 - 1");
  check_access(actor(self), barrier, 8, Access::write, "mbarrier.init");
  mark_mbarrier(barrier, true);
  Mbarrier m;
  m.address = barrier;
  m.count = m.pending = count;
  m.agent = machine.new_agent();
  machine.mbarriers.push_back(std::move(m));
}

void mbarrier_invalidate(uint64_t* barrier) {
  check_mbarrier_use(actor(*machine.current), barrier, "mbarrier.inval");
  mbarrier_at(barrier, "mbarrier.inval").address = nullptr;
  mark_mbarrier(barrier, false);
}

void complete_phase_if_done(Mbarrier& m) {
  if (m.pending || m.expected) return;
  ++m.phase;
  m.pending = m.count;
  join(m.completed, m.arriving);
  for (int waiter : m.waiters) make_ready(machine.threads[waiter]);
  m.waiters.clear();
}

void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes) {
  Thread& self = *machine.current;
  Mbarrier& m = mbarrier_at(barrier, "mbarrier.arrive");
  check_mbarrier_use(actor(self), barrier, "mbarrier.arrive");
  if (!m.pending)
    fail("mbarrier.arrive: all arrivals of this phase have come, it waits for bytes only");
  m.expected += expected_bytes;
  --m.pending;
  release(self, m.arriving);
  complete_phase_if_done(m);
}

void complete_bytes(uint64_t* barrier, uint32_t bytes, uint32_t clock) {
  for (Mbarrier& m : machine.mbarriers) {
    if (m.address != barrier) continue;
    m.expected -= bytes;
    if (m.arriving.empty()) m.arriving.assign(kMaxAgents, 0);
    m.arriving[m.agent] = clock;
    complete_phase_if_done(m);
  }
}

Mbarrier& mbarrier_of_copy(uint64_t* barrier, const Actor& who, const char* instruction) {
  Mbarrier& m = mbarrier_at(barrier, instruction);
  check_mbarrier_use(who, barrier, instruction);
  return m;
}

bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  Thread& self = *machine.current;
  Mbarrier& m = mbarrier_at(barrier, "mbarrier.try_wait");
  check_mbarrier_use(actor(self), barrier, "mbarrier.try_wait");
  if (parity > 1) fail("mbarrier.try_wait: the parity must be 0 or 1");
  if (m.phase % 2 == parity) {
    if (machine.chance(4)) {  // false before its time, as the instruction may
      make_ready(self);
      wait("mbarrier.try_wait");
      return false;
    }
    self.waited_mbarrier = barrier;
    while (m.phase % 2 == parity) {
      m.waiters.push_back(self.id);
      wait("mbarrier.try_wait");
    }
    self.waited_mbarrier = nullptr;
  }
  if (!m.completed.empty()) join(self.order, m.completed);
  return true;
}

void fence_async_shared() {
  Thread& self = *machine.current;
  self.async_fences.push_back(self.order[self.id]++);
}

void fence_mbarrier_init() {
  Thread& self = *machine.current;
  self.mbarrier_fences.push_back(self.order[self.id]++);
}

namespace {

// Checks an atomic and performs it.
template <class T, class F>
T atomic(const char* name, T* pointer, F f) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(T)) fail(std::string(name) + ": misaligned");
  note_access();
  check_access(actor(*machine.current), pointer, sizeof(T), Access::atomic, name);
  if (!is_shared(pointer)) note_global_atomic();
  const T before = *pointer;
  *pointer = f(before);
  return before;
}

}  // namespace

template <class T>
T atomic_add(T* pointer, T value) {
  return atomic("atomicAdd", pointer, [=](T x) { return static_cast<T>(x + value); });
}
template int atomic_add(int*, int);
template unsigned atomic_add(unsigned*, unsigned);
template unsigned long long atomic_add(unsigned long long*, unsigned long long);
template float atomic_add(float*, float);

int atomic_max(int* pointer, int value) {
  return atomic("atomicMax", pointer, [=](int x) { return std::max(x, value); });
}
int atomic_min(int* pointer, int value) {
  return atomic("atomicMin", pointer, [=](int x) { return std::min(x, value); });
}
int atomic_exchange(int* pointer, int value) {
  return atomic("atomicExch", pointer, [=](int) { return value; });
}
unsigned atomic_or(unsigned* pointer, unsigned value) {
  return atomic("atomicOr", pointer, [=](unsigned x) { return x | value; });
}
int atomic_cas(int* pointer, int compare, int value) {
  return atomic("atomicCAS", pointer, [=](int x) { return x == compare ? value : x; });
}

}  // namespace simt
