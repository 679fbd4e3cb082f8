// Memory of the processor that a session keeps between its runs.
//
// Runs of one plan want the same sizes again and again. The system's allocator gives large blocks
// back and takes them anew, and each page of them costs a fault: a seventh of a training step of
// ResNet-20. While a pool is entered on a thread, what libtorch allocates there comes from blocks
// of that very size that the pool has had before; other threads get memory as always.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

namespace {

class Pool;

// Stands before each block; as long as an alignment, so that the block stays aligned.
struct alignas(64) Header {
  size_t size = 0;
  // Set while the block is in use.
  std::shared_ptr<Pool> pool;
};

class Pool {
 public:
  Header* take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = free_.find(size);
    if (found == free_.end() || found->second.empty()) return nullptr;
    Header* header = found->second.back();
    found->second.pop_back();
    return header;
  }

  void put(Header* header) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_[header->size].push_back(header);
  }

  ~Pool() {
    for (auto& [size, headers] : free_) {
      for (Header* header : headers) {
        header->~Header();
        c10::free_cpu(header);
      }
    }
  }

 private:
  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<Header*>> free_;
};

thread_local std::shared_ptr<Pool>* entered = nullptr;

// Blocks below this are cheap to get from the system, and many sizes of them come and go.
constexpr size_t kSmall = 1 << 12;

void release(void* data) {
  if (data == nullptr) return;
  Header* header = static_cast<Header*>(data) - 1;
  // The last block that is in use may hold the last reference to its pool.
  std::shared_ptr<Pool> pool = std::move(header->pool);
  if (pool) {
    pool->put(header);
    return;
  }
  header->~Header();
  c10::free_cpu(header);
}

class Allocator final : public at::Allocator {
 public:
  at::DataPtr allocate(size_t size) override {
    void* data = size == 0 ? nullptr : block(size);
    return {data, data, &release, at::Device(at::DeviceType::CPU)};
  }

  at::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }

 private:
  static void* block(size_t size) {
    const bool pooled = entered != nullptr && size >= kSmall;
    Header* header = pooled ? (*entered)->take(size) : nullptr;
    if (header == nullptr) {
      TORCH_CHECK(size < SIZE_MAX - sizeof(Header), "a block of ", size, " bytes");
      header = new (c10::alloc_cpu(size + sizeof(Header))) Header;
      header->size = size;
    }
    if (pooled) header->pool = *entered;
    return header + 1;
  }
};

}  // namespace

extern "C" {

// Puts the allocator in place, once in a process.
void opt_tch_pool_install() {
  static Allocator* allocator = [] {
    auto made = new Allocator;
    c10::SetCPUAllocator(made, 100);
    return made;
  }();
  (void)allocator;
}

void* opt_tch_pool_new() { return new std::shared_ptr<Pool>(std::make_shared<Pool>()); }

// Blocks that are in use stay valid.
void opt_tch_pool_free(void* pool) { delete static_cast<std::shared_ptr<Pool>*>(pool); }

// What is allocated on this thread comes from the pool until it is left; null leaves it. Returns
// the pool that was entered before.
void* opt_tch_pool_enter(void* pool) {
  void* before = entered;
  entered = static_cast<std::shared_ptr<Pool>*>(pool);
  return before;
}

}  // extern "C"
