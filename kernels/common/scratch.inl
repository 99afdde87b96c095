// Working memory of one call or task. Included after simd.inl, once per instruction set.

// Zeroed heap memory on a cache line's border, gone with the scope. (std::vector would instantiate library code under this
// instruction set. calloc gets large blocks from the system already zero.)
template <typename T>
struct Scratch {
  T* data;

  explicit Scratch(int64_t n) : block_(std::calloc(size_t(n) * sizeof(T) + line, 1)) {
    if (!block_) throw std::bad_alloc();
    data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(block_) + line - 1) / line * line);
  }
  ~Scratch() { std::free(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T& operator[](int64_t i) const { return data[i]; }

 private:
  static constexpr size_t line = 64;
  void* block_;
};
