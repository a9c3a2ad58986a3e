// Which instruction set the CPU kernels use, chosen at run time.
//
// Every csrc/cpu/<op>.kernel.cpp is compiled once per instruction set, each time into a namespace
// of that name (taut::avx2, taut::amx, ...). <op>.h declares its kernels in all of them with
// TAUT_DECLARE_KERNEL; <op>.cpp collects them with TAUT_KERNEL and calls through the table.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define TAUT_EXPORT __attribute__((visibility("default")))

namespace taut {

// In ascending order: a machine that supports one supports all before it.
enum class Isa : int { portable, avx2, avx512, avx512_bf16, amx };
constexpr int kIsaCount = 5;

TAUT_EXPORT const char* isa_name(Isa isa);
// The sets this build holds and this machine can run.
TAUT_EXPORT const std::vector<Isa>& available_isas();
TAUT_EXPORT Isa active_isa();
// Throws std::invalid_argument for a set that is not available, naming those that are.
TAUT_EXPORT void set_active_isa(const std::string& name);
// {op, "isa" or "isa/path"} of the last call of each op that ran on this library.
TAUT_EXPORT std::vector<std::pair<std::string, std::string>> last_variants();

// One per op, at namespace scope in its launcher; record() is what last_variants() reports.
class VariantRecord {
 public:
  explicit VariantRecord(const char* op);
  void record(const char* path = nullptr) {
    isa_.store(active_isa(), std::memory_order_relaxed);
    path_.store(path, std::memory_order_relaxed);
    ran_.store(true, std::memory_order_relaxed);
  }

 private:
  friend std::vector<std::pair<std::string, std::string>> last_variants();
  const char* op_;
  std::atomic<bool> ran_{false};
  std::atomic<Isa> isa_{Isa::portable};
  std::atomic<const char*> path_{nullptr};
  VariantRecord* next_;
};

template <class Function>
struct KernelTable {
  Function* by_isa[kIsaCount];
  Function* get() const { return by_isa[static_cast<int>(active_isa())]; }
};

}  // namespace taut

#if defined(__x86_64__)
#define TAUT_FOR_EACH_X86_ISA(X, name) \
  X(avx2, name) X(avx512, name) X(avx512_bf16, name) X(amx, name)
#else
#define TAUT_FOR_EACH_X86_ISA(X, name)
#endif

#define TAUT_FOR_EACH_ISA(X, name) X(portable, name) TAUT_FOR_EACH_X86_ISA(X, name)

// Declares `name`, a function of type `Function`, in the namespace of every instruction set.
#define TAUT_DECLARE_KERNEL(name, Function) \
  namespace portable {                      \
  Function name;                            \
  }                                         \
  namespace avx2 {                          \
  Function name;                            \
  }                                         \
  namespace avx512 {                        \
  Function name;                            \
  }                                         \
  namespace avx512_bf16 {                   \
  Function name;                            \
  }                                         \
  namespace amx {                           \
  Function name;                            \
  }
#define TAUT_KERNEL_ADDRESS(isa, name) &isa::name,
// The kernel `name` of the active instruction set.
#define TAUT_KERNEL(name)                                                                         \
  ([]() -> decltype(&portable::name) {                                                            \
    static constexpr ::taut::KernelTable<std::remove_pointer_t<decltype(&portable::name)>> table{ \
        {TAUT_FOR_EACH_ISA(TAUT_KERNEL_ADDRESS, name)}};                                          \
    return table.get();                                                                           \
  }())
