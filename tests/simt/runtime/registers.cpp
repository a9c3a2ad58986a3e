// The special registers. Kernels see them as constants (include/cuda/device.h) and only the
// scheduler changes them, so they are defined here, where that header is not included.
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
};
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

void set_block(const dim3& grid, const dim3& block, const uint3& index) {
  gridDim = grid;
  blockDim = block;
  blockIdx = index;
}

void set_thread(const uint3& index) { threadIdx = index; }

}  // namespace simt
