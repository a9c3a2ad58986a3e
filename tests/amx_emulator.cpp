// Executes AMX's instructions on machines that lack them, so that the amx kernels are tested there
// as they were compiled. Such a machine raises SIGILL at each; the handler here decodes it, does to
// this thread's tiles what the hardware would, and goes on behind it. What hardware refuses ends
// the process by the hardware's signal, with a line on stderr that says why.
//
// Needs AVX-512, as do the amx kernels. amx_emulator.py builds and loads it.
// Source: Intel SDM, volume 2 ("LDTILECFG" to "TILEZERO") for operations, encodings and faults.
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

constexpr int kTiles = 8;
constexpr int kRows = 16;
constexpr int kRowBytes = 64;

// In memory: palette, start row, 14 reserved bytes, bytes per row and rows of 16 tiles, of which
// palette 1 has 8.
struct Config {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64, "LDTILECFG reads 64 bytes");

struct Tile {
  alignas(64) uint8_t bytes[kRows][kRowBytes];
};

struct State {
  Config config;
  Tile tiles[kTiles];
};

State& state() {
  static thread_local State state{};
  return state;
}

enum Operation {
  kConfigure,
  kStoreConfig,
  kRelease,
  kZero,
  kLoad,
  kStore,
  kBf16,
  kInt8,
  kOperations
};
std::atomic<int64_t> counts[kOperations];

struct Instruction {
  Operation operation;
  int length;
  int tile;                 // destination, or what is stored
  int a, b;                 // of products
  bool signed_a, signed_b;  // of kInt8
  uint8_t* address;
  int64_t stride;
};

struct sigaction earlier;  // what handled SIGILL before

[[noreturn]] void fault(int signal, const char* reason) {
  char line[160];
  const int length = std::snprintf(line, sizeof line, "AMX fault: %s\n", reason);
  if (write(STDERR_FILENO, line, static_cast<size_t>(length)) < 0) std::abort();
  sigaction(SIGILL, &earlier, nullptr);  // pytest's prints where Python was
  raise(signal);
  std::abort();
}

// The registers of an address by their numbers in instructions.
int64_t register_value(const mcontext_t& context, int number) {
  constexpr int kSaved[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                              REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                              REG_R12, REG_R13, REG_R14, REG_R15};
  return context.gregs[kSaved[number]];
}

template <class T>
T read_at(const uint8_t* address) {
  T value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

// The memory operand whose ModRM byte is code[4]. Sets address, stride and length.
void decode_memory(const uint8_t* code, const mcontext_t& context, bool by_rows,
                   Instruction* found) {
  const uint8_t modrm = code[4];
  const int mod = modrm >> 6;
  const int high_index = (code[1] & 0x40) ? 0 : 8, high_base = (code[1] & 0x20) ? 0 : 8;
  const uint8_t* next = code + 5;
  int64_t address = 0, index = 0;
  bool base_is_next = false;
  if ((modrm & 7) == 4) {
    const uint8_t sib = *next++;
    const int number = ((sib >> 3) & 7) + high_index;
    if (number != 4) index = register_value(context, number) * (int64_t{1} << (sib >> 6));
    if ((sib & 7) != 5 || mod != 0)
      address = register_value(context, (sib & 7) + high_base);
    else
      address = read_at<int32_t>(next), next += 4;
  } else if (by_rows) {
    fault(SIGILL, "rows of a tile without a SIB byte");
  } else if ((modrm & 7) == 5 && mod == 0) {
    address = read_at<int32_t>(next), next += 4;
    base_is_next = true;
  } else {
    address = register_value(context, (modrm & 7) + high_base);
  }
  if (mod == 1) address += read_at<int8_t>(next), next += 1;
  if (mod == 2) address += read_at<int32_t>(next), next += 4;
  if (base_is_next) address += reinterpret_cast<int64_t>(next);
  found->stride = index;
  found->address = reinterpret_cast<uint8_t*>(address + (by_rows ? 0 : index));
  found->length = static_cast<int>(next - code);
}

// Whether an instruction of AMX is at `code`, and which: VEX.128.0F38.W0, opcodes 49, 4B, 5C, 5E.
bool decode(const uint8_t* code, const mcontext_t& context, Instruction* found) {
  constexpr int kNoRegister8 = 0x80, kNoBase8 = 0x20;  // R and B, inverted
  if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[2] & 0x84) != 0) return false;
  const int prefix = code[2] & 3;  // none, 66, F3, F2
  const int vvvv = (~code[2] >> 3) & 15;
  const uint8_t modrm = code[4];
  const bool in_memory = modrm < 0xC0;
  if (!(code[1] & kNoRegister8) || (!in_memory && !(code[1] & kNoBase8))) return false;
  *found = {};
  found->length = 5;
  found->tile = (modrm >> 3) & 7;
  switch (code[3]) {
    case 0x49:
      if (vvvv != 0) return false;
      if (in_memory && prefix < 2 && found->tile == 0) {
        found->operation = prefix == 0 ? kConfigure : kStoreConfig;
        decode_memory(code, context, false, found);
        return true;
      }
      found->operation = prefix == 0 ? kRelease : kZero;
      return modrm == 0xC0 ? prefix == 0 || prefix == 3 : prefix == 3 && (modrm & 0xC7) == 0xC0;
    case 0x4B:
      if (vvvv != 0 || !in_memory || prefix == 0) return false;
      found->operation = prefix == 2 ? kStore : kLoad;
      decode_memory(code, context, true, found);
      return true;
    case 0x5C:
    case 0x5E:
      if (in_memory || vvvv >= kTiles || (code[3] == 0x5C && prefix != 2)) return false;
      found->operation = code[3] == 0x5C ? kBf16 : kInt8;
      found->a = modrm & 7;
      found->b = vvvv;
      found->signed_a = prefix >= 2;  // F2 is signed by signed, F3 signed by unsigned
      found->signed_b = (prefix & 1) != 0;
      return true;
    default: return false;
  }
}

void configure(const uint8_t* address) {
  const Config config = read_at<Config>(address);
  if (config.palette > 1) fault(SIGSEGV, "LDTILECFG of an unknown palette");
  if (config.palette == 0) {
    state() = State{};
    return;
  }
  if (config.start_row != 0) fault(SIGILL, "a start row, which the emulator does not know");
  for (uint8_t byte : config.reserved)
    if (byte != 0) fault(SIGSEGV, "LDTILECFG with reserved bytes set");
  for (int tile = 0; tile < 16; ++tile) {
    const int rows = config.rows[tile], row_bytes = config.row_bytes[tile];
    if (tile >= kTiles && (rows != 0 || row_bytes != 0))
      fault(SIGSEGV, "LDTILECFG of a ninth tile");
    if (rows > kRows || row_bytes > kRowBytes) fault(SIGSEGV, "LDTILECFG of a tile too large");
    if ((rows == 0) != (row_bytes == 0))
      fault(SIGSEGV, "LDTILECFG of a tile without rows or bytes");
  }
  state() = State{};
  state().config = config;
}

int row_bytes_in_memory(int tile) {
  const int bytes = state().config.row_bytes[tile];
  if (bytes % 4 != 0) fault(SIGILL, "rows in memory that are not whole groups of 4 bytes");
  return bytes;
}

Tile& valid_tile(int tile) {
  const Config& config = state().config;
  if (config.palette == 0) fault(SIGILL, "tiles are not configured");
  if (config.rows[tile] == 0) fault(SIGILL, "a tile that the configuration leaves out");
  return state().tiles[tile];
}

// 4-byte groups in a row of A.
int product_depth(const Instruction& op) {
  for (int tile : {op.tile, op.a, op.b}) valid_tile(tile);
  const Config& config = state().config;
  const int depth = config.row_bytes[op.a] / 4;
  if (op.tile == op.a || op.tile == op.b || op.a == op.b)
    fault(SIGILL, "a product of a tile with itself");
  if (config.row_bytes[op.tile] % 4 != 0 || config.row_bytes[op.a] % 4 != 0 ||
      config.row_bytes[op.b] % 4 != 0)
    fault(SIGILL, "a product of rows that are not whole groups of 4 bytes");
  if (config.rows[op.tile] != config.rows[op.a] || config.rows[op.b] != depth ||
      config.row_bytes[op.tile] != config.row_bytes[op.b])
    fault(SIGILL, "a product of tiles whose shapes do not fit");
  return depth;
}

// C += A B in fp32, even and odd members of the pairs in sums of their own. Subnormals are 0.
void multiply_bf16(const Instruction& op) {
  const int pairs = product_depth(op);
  State& s = state();
  _mm_setcsr(_mm_getcsr() | _MM_FLUSH_ZERO_ON | 0x40);  // denormals are zero
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
  for (int m = 0; m < s.config.rows[op.tile]; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < pairs; ++k) {
      const __m512i a = _mm512_set1_epi32(read_at<int32_t>(s.tiles[op.a].bytes[m] + 4 * k));
      const __m512i b = _mm512_load_si512(s.tiles[op.b].bytes[k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                             _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)),
                            _mm512_castsi512_ps(_mm512_and_si512(b, high)), odd);
    }
    float* c = reinterpret_cast<float*>(s.tiles[op.tile].bytes[m]);
    const int columns = s.config.row_bytes[op.tile] / 4;
    const __mmask16 mask = static_cast<__mmask16>((1u << columns) - 1);
    _mm512_mask_store_ps(c, mask, _mm512_add_ps(_mm512_load_ps(c), _mm512_add_ps(even, odd)));
  }
}

// The byte k of each 32-bit lane, as 32 bits.
__m512i widened(__m512i bytes, int k, bool is_signed) {
  const __m512i top = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(24 - 8 * k));
  return is_signed ? _mm512_srai_epi32(top, 24) : _mm512_srli_epi32(top, 24);
}

void multiply_int8(const Instruction& op) {
  const int quads = product_depth(op);
  State& s = state();
  for (int m = 0; m < s.config.rows[op.tile]; ++m) {
    __m512i c = _mm512_load_si512(s.tiles[op.tile].bytes[m]);
    for (int q = 0; q < quads; ++q) {
      const __m512i a = _mm512_set1_epi32(read_at<int32_t>(s.tiles[op.a].bytes[m] + 4 * q));
      const __m512i b = _mm512_load_si512(s.tiles[op.b].bytes[q]);
      for (int k = 0; k < 4; ++k)
        c = _mm512_add_epi32(
            c, _mm512_mullo_epi32(widened(a, k, op.signed_a), widened(b, k, op.signed_b)));
    }
    const __mmask16 mask = static_cast<__mmask16>((1u << (s.config.row_bytes[op.tile] / 4)) - 1);
    _mm512_mask_store_epi32(s.tiles[op.tile].bytes[m], mask, c);
  }
}

void execute(const Instruction& op) {
  const Config& config = state().config;
  counts[op.operation].fetch_add(1, std::memory_order_relaxed);
  switch (op.operation) {
    case kConfigure: return configure(op.address);
    case kStoreConfig: std::memcpy(op.address, &config, sizeof config); return;
    case kRelease: state() = State{}; return;
    case kZero: valid_tile(op.tile) = Tile{}; return;
    case kLoad: {
      Tile& tile = valid_tile(op.tile);
      const int bytes = row_bytes_in_memory(op.tile);
      Tile loaded{};
      for (int row = 0; row < config.rows[op.tile]; ++row)
        std::memcpy(loaded.bytes[row], op.address + row * op.stride, bytes);
      tile = loaded;
      return;
    }
    case kStore: {
      const Tile& tile = valid_tile(op.tile);
      const int bytes = row_bytes_in_memory(op.tile);
      for (int row = 0; row < config.rows[op.tile]; ++row)
        std::memcpy(op.address + row * op.stride, tile.bytes[row], bytes);
      return;
    }
    case kBf16: return multiply_bf16(op);
    case kInt8: return multiply_int8(op);
    case kOperations: std::abort();
  }
}

void handle(int, siginfo_t*, void* saved) {
  mcontext_t& context = static_cast<ucontext_t*>(saved)->uc_mcontext;
  const uint8_t* const first = reinterpret_cast<const uint8_t*>(context.gregs[REG_RIP]);
  const uint8_t* code = first;
  Instruction instruction;
  // No instruction of AMX changes a register, so that a run of them costs one signal.
  for (; decode(code, context, &instruction); code += instruction.length) execute(instruction);
  if (code == first) fault(SIGILL, "not an instruction of AMX");
  context.gregs[REG_RIP] = reinterpret_cast<greg_t>(code);
}

}  // namespace

// Its presence is what csrc/cpu/dispatch.cpp asks for.
extern "C" void taut_emulates_amx() {}

// How many of each there were: LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED,
// products of bf16, products of int8.
extern "C" void amx_counts(int64_t* out) {
  for (int i = 0; i < kOperations; ++i) out[i] = counts[i].load(std::memory_order_relaxed);
}

extern "C" void amx_emulate() {
  struct sigaction action = {}, current = {};
  sigaction(SIGILL, nullptr, &current);
  if (current.sa_sigaction == handle) return;
  earlier = current;
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, nullptr);
}
