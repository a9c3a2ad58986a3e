#include "cpu/dispatch.h"

#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// A process that executes AMX's instructions itself where the machine has none defines this before
// libtaut_cpu is loaded (tests/amx_emulator.cpp). It gets the amx kernels where it asks for them.
extern "C" TAUT_EXPORT __attribute__((weak)) void taut_emulates_amx();

namespace taut {
namespace {

constexpr const char* kNames[kIsaCount] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__x86_64__)
// The kernel hands out the 8 KiB tile state on request only, and the permission holds for the
// whole process. ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18.
bool request_amx() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

bool machine_has_amx() {
  // CPUID.7.0:EDX bits 22 (AMX-BF16), 24 (AMX-TILE), 25 (AMX-INT8); gcc 12 knows no name.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  __cpuid_count(7, 0, eax, ebx, ecx, edx);
  constexpr unsigned kAmx = (1u << 22) | (1u << 24) | (1u << 25);
  return (edx & kAmx) == kAmx && request_amx();
}

bool emulates_amx() { return taut_emulates_amx != nullptr && !machine_has_amx(); }

bool supports(Isa isa) {
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return supports(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case Isa::avx512_bf16:
      return supports(Isa::avx512) && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vpopcntdq") &&
             __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("avx512vbmi");
    case Isa::amx: return supports(Isa::avx512_bf16) && (machine_has_amx() || emulates_amx());
  }
  return false;
}
#else
bool supports(Isa isa) { return isa == Isa::portable; }
bool emulates_amx() { return false; }
#endif

Isa find(const std::string& name) {
  std::string known;
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    known += (known.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::invalid_argument("instruction set must be one of " + known + " on this machine, got " +
                              name);
}

Isa initial_isa() {
  Isa best = Isa::portable;
  for (Isa isa : available_isas())
    if (isa != Isa::amx || !emulates_amx()) best = isa;
  return best;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

VariantRecord* first_record = nullptr;

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found;
    for (int i = 0; i < kIsaCount; ++i)
      if (supports(static_cast<Isa>(i))) found.push_back(static_cast<Isa>(i));
    return found;
  }();
  return isas;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_active_isa(const std::string& name) { active().store(find(name)); }

VariantRecord::VariantRecord(const char* op) : op_(op), next_(first_record) { first_record = this; }

std::vector<std::pair<std::string, std::string>> last_variants() {
  std::vector<std::pair<std::string, std::string>> found;
  for (VariantRecord* r = first_record; r != nullptr; r = r->next_) {
    if (!r->ran_.load()) continue;
    std::string variant = isa_name(r->isa_.load());
    if (const char* path = r->path_.load()) variant += std::string("/") + path;
    found.emplace_back(r->op_, variant);
  }
  return found;
}

}  // namespace taut
