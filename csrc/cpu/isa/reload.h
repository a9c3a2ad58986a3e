// Keeping values out of registers.
#pragma once

namespace taut {
namespace TAUT_ISA {

// Costs no instruction. What was loaded before is loaded anew after it, so that it need not live in
// registers in between; sums that no memory holds stay where they are.
inline void reload_memory() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

}  // namespace TAUT_ISA
}  // namespace taut
