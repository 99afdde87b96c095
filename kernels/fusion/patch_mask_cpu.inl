// Random patches of pictures set to a value, with the normalisation before it. A patch's number is hashed with the picture's key; the
// `count` smallest hashes are masked: no order of drawing, so none to agree on.

inline uint64_t mix64(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The element that would be at `rank` were they sorted (quickselect). Reorders.
inline int64_t nth_smallest(int64_t* x, int64_t n, int64_t rank) {
  for (int64_t low = 0, high = n - 1; low < high;) {
    const int64_t pivot = x[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (x[i] < pivot) ++i;
      while (pivot < x[j]) --j;
      if (i > j) break;
      const int64_t t = x[i];
      x[i++] = x[j], x[j--] = t;
    }
    if (rank <= j) high = j;
    else if (rank >= i) low = i;
    else break;
  }
  return x[rank];
}

template <typename T>
struct PatchMask {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>;

  const PatchMaskArgs& args;
  const int64_t rows = args.height / args.patch_h, columns = args.width / args.patch_w, patches = rows * columns;
  const T value = from_float<T>(A(args.value));
  Scratch<int64_t> scores{patches + 1, uncleared}, sorted{patches + 1, uncleared};
  // Runs of masked pixels of each row of patches: [begin, end) pairs, and how many.
  Scratch<int64_t> runs{rows * (columns + 2) + 1, uncleared}, counts{rows + 1};

  void draw(int64_t n) {
    const int64_t count = std::min(std::max(args.counts[n], int64_t{0}), patches);
    const uint64_t key = uint64_t(args.keys[n]);
    for (int64_t p = 0; p < patches; ++p) scores[p] = sorted[p] = int64_t(mix64(key + 0x9E3779B97F4A7C15u * uint64_t(p)));
    const int64_t last = count ? nth_smallest(sorted.data, patches, count - 1) : 0;
    for (int64_t y = 0; y < rows; ++y) {
      int64_t* run = runs.data + y * (columns + 2);
      int64_t found = 0;
      for (int64_t x = 0; x < columns && count; ++x) {
        if (scores[y * columns + x] > last) continue;
        const int64_t begin = x * args.patch_w;
        if (found && run[found - 1] == begin) run[found - 1] += args.patch_w;
        else run[found] = begin, run[found + 1] = begin + args.patch_w, found += 2;
      }
      counts[y] = found;
    }
  }

  void hide(T* row, int64_t y) const {
    if (y >= rows * args.patch_h) return;
    const int64_t* run = runs.data + y / args.patch_h * (columns + 2);
    for (int64_t r = 0; r < counts[y / args.patch_h]; r += 2)
      for (int64_t x = run[r]; x < run[r + 1]; ++x) row[x] = value;
  }

  void normalise(const T* from, T* to, int64_t c) const {
    const V<A> scale = splat<A>(args.scale ? static_cast<const A*>(args.scale)[c] : A(1));
    const V<A> shift = splat<A>(args.shift ? static_cast<const A*>(args.shift)[c] : A(0));
    for (int64_t x = 0; x < args.width; x += lanes) {
      const int64_t left = args.width - x;
      store_up_to(to + x, load_up_to(from + x, left) * scale + shift, left);
    }
  }

  void run(int64_t n) {
    draw(n);
    const int64_t plane = args.height * args.width;
    for (int64_t c = 0; c < args.channels; ++c) {
      const T* from = static_cast<const T*>(args.x) + (n * args.channels + c) * plane;
      T* to = static_cast<T*>(args.out) + (n * args.channels + c) * plane;
      for (int64_t y = 0; y < args.height; ++y, from += args.width, to += args.width) {
        if (args.scale || args.shift) normalise(from, to, c);
        else if (from != to) std::memcpy(static_cast<void*>(to), from, size_t(args.width) * sizeof(T));
        hide(to, y);
      }
    }
  }
};

inline void patch_mask_cpu(const PatchMaskArgs& args, const Parallel& parallel) {
  with_type(args.dtype, [&](auto type) {
    for_tasks(parallel, args.samples, args.samples * args.channels * args.height * args.width, [&](int64_t begin, int64_t end) {
      PatchMask<decltype(type)> mask{args};
      for (int64_t n = begin; n < end; ++n) mask.run(n);
    });
  });
}
