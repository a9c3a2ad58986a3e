// What the twins in include/ call: the executor as a kernel's thread sees it. Compiled without
// instrumentation; everything it does to memory it checks itself.
#pragma once
#include <cstdint>

namespace taut::ptx {
struct TensorMap;
}

namespace simt {

// Ends the launch with an error that names kernel, block and thread. Does not return.
[[noreturn]] void fail(const char* message);

// What a kernel is compiled for, as __CUDA_ARCH__ says it: Launch::architecture.
int architecture();

uint8_t* shared_memory();
uint32_t shared_address(const void* pointer);

// ---- barriers of the block
void block_sync();
int block_sync_count(int predicate);
void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);
void thread_fence();

// ---- collectives of a warp
enum class Shuffle { index, up, down, exclusive_or };
void warp_sync(uint32_t mask);
uint32_t shuffle(Shuffle kind, uint32_t mask, uint32_t value, int operand, int width);
uint32_t ballot(uint32_t mask, bool predicate);
void load_matrix(uint32_t* registers, int matrices, bool transposed, const void* row);
void store_matrix(void* row, int matrices, bool transposed, const uint32_t* registers);

// The element types of matrix products; K is what four 32-bit registers of A hold per 16 rows.
enum class Element { bf16, f16, tf32, e4m3, s8, b1_and, b1_xor };
// d: 4 accumulators. a: 4 registers (2 when k = 128). b: 2 registers (1 when k = 128).
void mma(Element element, int k, void* d, const uint32_t* a, const uint32_t* b);
void set_max_registers(int registers, bool up);

// ---- asynchronous copies
void copy_async(void* shared, const void* global, int bytes, int source_bytes);
void copy_commit();
void copy_wait(int pending);

void mbarrier_init(uint64_t* barrier, uint32_t count);
void mbarrier_invalidate(uint64_t* barrier);
void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes);
bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity);
void fence_mbarrier_init();
void fence_async_shared();

void prefetch_tensor_map(const taut::ptx::TensorMap* map);
void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);
void bulk_store(void* global, const void* shared, uint32_t bytes);
void tensor_load(void* shared, const taut::ptx::TensorMap* map, uint64_t* barrier, int dimensions,
                 const int* coordinates);
void tensor_store(const taut::ptx::TensorMap* map, const void* shared, int dimensions,
                  const int* coordinates);
void bulk_commit();
void bulk_wait(int pending, bool read_only);

// ---- warpgroup products: a_registers is null when A is in shared memory
void wgmma(Element element, int n, bool a_along_m, bool b_along_n, void* d,
           const uint32_t* a_registers, uint64_t a, uint64_t b, bool accumulate);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

// ---- atomics, on global or shared memory
template <class T>
T atomic_add(T* pointer, T value);
int atomic_max(int* pointer, int value);
int atomic_min(int* pointer, int value);
int atomic_exchange(int* pointer, int value);
unsigned atomic_or(unsigned* pointer, unsigned value);
int atomic_cas(int* pointer, int compare, int value);

// ---- number formats
uint16_t to_bf16(float x);
uint16_t to_f16(float x);
float from_bf16(uint16_t bits);
float from_f16(uint16_t bits);
uint32_t to_tf32(float x);

}  // namespace simt
