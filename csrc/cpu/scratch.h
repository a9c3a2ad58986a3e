// fp32 working memory for kernels, which own none themselves. For launchers only.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace taut {

class ScratchBuffer {
 public:
  ScratchBuffer() = default;
  ScratchBuffer(const ScratchBuffer&) = delete;
  ~ScratchBuffer() { std::free(data_); }

  // At least `floats` floats, 64-byte aligned; what it gave before is gone where it was smaller.
  float* at_least(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      size_ = (floats + 1023) / 1024 * 1024;
      data_ =
          static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(size_) * sizeof(float)));
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

// Of the task that this thread runs; valid until this thread asks again.
inline float* thread_scratch(int64_t floats) {
  static thread_local ScratchBuffer buffer;
  return buffer.at_least(floats);
}

// Of a launcher, for all of its tasks; one at a time in a thread. Up to 4 MiB are kept from call to
// call: a tensor costs half a microsecond, and a layer of a short text took sixteen.
class LaunchScratch {
 public:
  explicit LaunchScratch(int64_t floats)
      : data(floats <= kKept ? kept().at_least(floats) : own_.at_least(floats)) {}

 private:
  static constexpr int64_t kKept = 1 << 20;
  static ScratchBuffer& kept() {
    static thread_local ScratchBuffer buffer;
    return buffer;
  }
  ScratchBuffer own_;

 public:
  float* const data;
};

}  // namespace taut
