// Working memory of one call or task. Included after simd.inl, once per instruction set.

// Large blocks that a thread has used and will want again: fresh ones cost a page fault for every 4 KB, which for a batch of 64 rows is
// more than the arithmetic. At most 4 MB stay with a thread until it ends. (std::vector would instantiate library code under this
// instruction set.)
struct ScratchCache {
  static constexpr size_t smallest = size_t(64) << 10, most = size_t(4) << 20;
  static constexpr int slots = 16;
  void* block[slots] = {};
  size_t size[slots] = {}, total = 0;

  ~ScratchCache() {
    for (void* b : block) std::free(b);
  }
  // A kept block of at least `bytes` that is not much larger, or null. Not cleared.
  void* take(size_t bytes, size_t* found) {
    int best = -1;
    for (int s = 0; s < slots; ++s)
      if (block[s] && size[s] >= bytes && size[s] <= 2 * bytes && (best < 0 || size[s] < size[best])) best = s;
    if (best < 0) return nullptr;
    void* taken = block[best];
    *found = size[best];
    total -= size[best];
    block[best] = nullptr;
    return taken;
  }
  bool keep(void* b, size_t bytes) {
    if (bytes < smallest || total + bytes > most) return false;
    for (int s = 0; s < slots; ++s) {
      if (block[s]) continue;
      block[s] = b, size[s] = bytes, total += bytes;
      return true;
    }
    return false;
  }
};

inline ScratchCache& scratch_cache() {
  static thread_local ScratchCache cache;
  return cache;
}

// For memory that is written before it is read.
struct Uncleared {};
constexpr Uncleared uncleared{};

// Zeroed heap memory on a cache line's border, gone with the scope.
template <typename T>
struct Scratch {
  T* data;

  explicit Scratch(int64_t n) : Scratch(n, uncleared) {
    if (reused_) std::memset(static_cast<void*>(data), 0, size_t(n) * sizeof(T));
  }
  Scratch(int64_t n, Uncleared) : bytes_(size_t(n) * sizeof(T) + line) {
    if (bytes_ >= ScratchCache::smallest) block_ = scratch_cache().take(bytes_, &bytes_);
    reused_ = block_ != nullptr;
    if (!reused_) block_ = std::calloc(bytes_, 1);
    if (!block_) throw std::bad_alloc();
    data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(block_) + line - 1) / line * line);
  }
  ~Scratch() {
    if (bytes_ < ScratchCache::smallest || !scratch_cache().keep(block_, bytes_)) std::free(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T& operator[](int64_t i) const { return data[i]; }

 private:
  static constexpr size_t line = 64;
  size_t bytes_;
  void* block_ = nullptr;
  bool reused_;
};
