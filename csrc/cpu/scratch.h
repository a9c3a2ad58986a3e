// fp32 working memory for kernels, which own none themselves. For launchers only.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace taut {

// At least `floats` floats, 64-byte aligned, of this thread; valid until this thread asks again.
inline float* thread_scratch(int64_t floats) {
  struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (floats > buffer.size) {
    std::free(buffer.data);
    buffer.size = (floats + 1023) / 1024 * 1024;
    buffer.data = static_cast<float*>(
        std::aligned_alloc(64, static_cast<size_t>(buffer.size) * sizeof(float)));
    if (buffer.data == nullptr) {
      buffer.size = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.data;
}

}  // namespace taut
