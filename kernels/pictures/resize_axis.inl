// How the outputs of one axis are made of pixels, in whole numbers: every compiler and instruction set finds the same weights.
//
// Positions are counted in 1 / (2^17 * ratio * out) of a pixel of the plane. In this unit the border of every output, the step from
// one to the next and the middle of every pixel are whole.

constexpr int64_t weight_bits = 14;  // weights of an output sum to 2^14

struct ResizeAxis {
  static constexpr int64_t block = 16;  // outputs are worked on in blocks of up to so many

  int64_t pixel, step;  // of this plane, in the unit above
  int64_t kept;         // weights kept for each output: 4, or a multiple of 8
  int64_t low, high;    // pixels that are read: [low, high)
  Scratch<int64_t> first, taps;  // [out rounded up to a block]
  Scratch<int16_t> weights;      // [out rounded up to a block][kept], zeros after the taps

  // `pixels` of a plane of which one stands for `ratio` of y; [from, to) in 2^-16 pixels of y. `left`: it lies on the first of those.
  ResizeAxis(int64_t pixels, int64_t ratio, bool left, int64_t from, int64_t to, int64_t out)
      : pixel((ratio * out) << 17), step(2 * (to - from)), kept(most(pixel, step)), low(pixels), high(0), first(rounded(out)),
        taps(rounded(out)), weights(rounded(out) * kept) {
    const int64_t start = out * (2 * from + (left ? (ratio - 1) << 16 : 0));
    for (int64_t i = 0; i < out; ++i) {
      const int64_t begin = start + i * step;
      if (step < pixel)
        between(i, 2 * begin + step - pixel, 2 * pixel, pixels);
      else
        covered(i, begin, pixels);
      low = std::min(low, first[i]), high = std::max(high, first[i] + taps[i]);
    }
    for (int64_t i = out; i < rounded(out); ++i) first[i] = low;
  }

  static int64_t rounded(int64_t out) { return (out + block - 1) / block * block; }

 private:
  static int64_t most(int64_t pixel, int64_t step) {
    const int64_t reach = step < pixel ? 2 : (step + pixel - 1) / pixel + 1;
    return reach <= 4 ? 4 : (reach + 7) / 8 * 8;
  }
  static int64_t floor_of(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
  static int64_t share(int64_t part, int64_t whole) { return ((part << weight_bits) + whole / 2) / whole; }

  // Smaller pictures: every pixel counts by how much of it an output covers. Beyond the border a plane goes on as its border.
  void covered(int64_t i, int64_t begin, int64_t pixels) {
    const int64_t from = floor_of(begin, pixel), last = floor_of(begin + step - 1, pixel);
    first[i] = std::min(std::max(from, int64_t{0}), pixels - 1);
    taps[i] = std::min(std::max(last, int64_t{0}), pixels - 1) - first[i] + 1;
    int64_t before = 0;
    for (int64_t k = 0; k < taps[i]; ++k) {
      const int64_t upto = k + 1 == taps[i] ? int64_t{1} << weight_bits : share((first[i] + k + 1) * pixel - begin, step);
      weights[i * kept + k] = int16_t(upto - before);
      before = upto;
    }
  }

  // Larger pictures: the two pixels around an output's middle, which is counted in half units as `twice` a pixel is.
  void between(int64_t i, int64_t middle, int64_t twice, int64_t pixels) {
    const int64_t k = floor_of(middle, twice);
    first[i] = std::min(std::max(k, int64_t{0}), pixels - 1);
    const int64_t right = k < 0 || k + 1 >= pixels ? 0 : share(middle - k * twice, twice);
    taps[i] = right ? 2 : 1;
    weights[i * kept] = int16_t((1 << weight_bits) - right);
    if (right) weights[i * kept + 1] = int16_t(right);
  }
};

// The same for a block of outputs at a time, whose pixels lie within 64 of each other: which of these each output needs, two by two.
struct PickedAxis {
  bool possible;
  int64_t pairs = 0;               // of pixels, for each output
  Scratch<int16_t> picks, weights;  // [blocks][pairs][block][2]

  PickedAxis(const ResizeAxis& axis, int64_t out)
      : possible(ResizeAxis::block * axis.step <= 62 * axis.pixel), picks(size(axis, out)), weights(size(axis, out)) {
    if (!possible) return;
    constexpr int64_t block = ResizeAxis::block;
    for (int64_t i = 0; i < out; ++i) pairs = std::max(pairs, (axis.taps[i] + 1) / 2);
    for (int64_t i = 0; i < out; ++i)
      for (int64_t p = 0; p < pairs; ++p)
        for (int64_t k = 2 * p; k < 2 * p + 2; ++k) {
          const int64_t at = ((i / block * pairs + p) * block + i % block) * 2 + k % 2;
          picks[at] = int16_t(axis.first[i] - axis.first[i / block * block] + k);
          weights[at] = axis.weights[i * axis.kept + k];
        }
  }

 private:
  int64_t size(const ResizeAxis& axis, int64_t out) const { return possible ? ResizeAxis::rounded(out) * axis.kept : 1; }
};
