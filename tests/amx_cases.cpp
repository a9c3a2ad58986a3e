// Single instructions of AMX, for test_amx.py: what the hardware computes and what it refuses.
#include <immintrin.h>

#include <cstdint>

namespace {
// gcc 12 takes LDTILECFG for a read of 8 bytes.
void configure(const void* config) {
  __asm__ volatile("" ::: "memory");
  const void* volatile address = config;
  _tile_loadconfig(address);
}
}  // namespace

extern "C" {

// Tile 0 += tile 1 x tile 2, each from memory and C back to memory. The kinds are bf16, then int8
// with signs of A and B: both, A, B, none.
void amx_multiply(const void* config, int kind, const void* a, int64_t a_stride, const void* b,
                  int64_t b_stride, void* c, int64_t c_stride) {
  configure(config);
  _tile_loadd(0, c, c_stride);
  _tile_loadd(1, a, a_stride);
  _tile_stream_loadd(2, b, b_stride);
  if (kind == 0) _tile_dpbf16ps(0, 1, 2);
  if (kind == 1) _tile_dpbssd(0, 1, 2);
  if (kind == 2) _tile_dpbsud(0, 1, 2);
  if (kind == 3) _tile_dpbusd(0, 1, 2);
  if (kind == 4) _tile_dpbuud(0, 1, 2);
  _tile_stored(0, c, c_stride);
  _tile_release();
}

// What STTILECFG stores after LDTILECFG, and after TILERELEASE.
void amx_configurations(const void* config, void* configured, void* released) {
  configure(config);
  _tile_storeconfig(configured);
  _tile_release();
  _tile_storeconfig(released);
}

// A tile as TILEZERO leaves it, and as it is right after LDTILECFG though it held data before.
void amx_cleared(const void* config, const void* data, void* zeroed, void* configured) {
  configure(config);
  _tile_loadd(7, data, 64);
  _tile_zero(7);
  _tile_stored(7, zeroed, 64);
  _tile_loadd(7, data, 64);
  configure(config);
  _tile_stored(7, configured, 64);
  _tile_release();
}

// Each of these is refused, by some configurations or by all.
void amx_use(const void* config) {
  configure(config);
  _tile_zero(3);
}
void amx_use_released() {
  _tile_release();
  _tile_zero(0);
}
void amx_square(const void* config) {
  configure(config);
  __asm__ volatile(
      ".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc1");  // TDPBF16PS of tiles 0, 1, 1: no assembler takes it
}
void amx_load(const void* config, const void* data) {
  configure(config);
  _tile_loadd(0, data, 64);
}
void amx_store(const void* config, void* data) {
  configure(config);
  _tile_stored(0, data, 64);
}
void amx_zero_with_vvvv() { __asm__ volatile(".byte 0xc4, 0xe2, 0x73, 0x49, 0xc0"); }
void amx_zero_of_tile_8() { __asm__ volatile(".byte 0xc4, 0x62, 0x7b, 0x49, 0xc0"); }
void amx_other() { __asm__ volatile("ud2"); }
}
