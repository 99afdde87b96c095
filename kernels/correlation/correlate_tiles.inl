// What both directions of the cross-attention share: a logarithm, and keys made ready.

template <typename A>
inline V<A> greater_of(V<A> a, V<A> b) {
  if constexpr (sizeof(A) == 4) return larger(a, b);
  else return select<A>(a > b, a, b);
}

// log(x) for x >= 1; NaN for infinity.
template <typename A>
inline V<A> log_above_one(V<A> x) {
  using B = typename Vec<A>::bits;
  constexpr int mantissa = sizeof(A) == 4 ? 23 : 52;
  constexpr B bias = sizeof(A) == 4 ? 127 : 1023;
  const M<A> power = ((M<A>)x >> mantissa) - bias;
  const V<A> fraction = (V<A>)((M<A>)x - (power << mantissa));
  const V<A> whole = __builtin_convertvector(power, V<A>);
  return whole * splat<A>(A(0.69314718055994530942)) + log1p_v<A>(fraction - splat<A>(A(1))) + (x - x);
}

// Queries of one panel.
template <typename A>
constexpr int64_t correlate_panel = 4 * lanes_of<A>;

// The keys (or values) of one exemplar that may be attended, for some heads, as rows of whole vectors of the wide type.
template <typename T>
struct Keys {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>;

  const CorrelateArgs& in;
  const HeadMap& x;
  const int64_t first, heads, width;  // heads [first, first + heads); channels with their padding
  Scratch<A> copy;
  const A* data = nullptr;
  int64_t row = 0, head = 0;  // strides

  Keys(const CorrelateArgs& in, const HeadMap& x, int64_t first, int64_t heads)
      : in(in), x(x), first(first), heads(heads), width(whole_vectors(in.depth, lanes)),
        copy(readable() && !in.key_mask ? 0 : in.keys * heads * width) {}

  bool readable() const { return std::is_same_v<T, A> && in.depth % lanes == 0; }

  // Rows `index[0 .. count)` of exemplar (b, e).
  void take(int64_t b, int64_t e, const int64_t* index, int64_t count) {
    const T* from = static_cast<const T*>(x.data) + b * x.stride_b + e * x.stride_e + first * x.stride_h;
    if constexpr (std::is_same_v<T, A>) {
      if (readable() && count == in.keys) {
        data = from, row = x.stride_n, head = x.stride_h;
        return;
      }
    }
    data = copy.data, row = heads * width, head = width;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t c = 0; c < width; c += lanes)
          store<A>(copy.data + j * row + h * width + c, load_up_to(from + index[j] * x.stride_n + h * x.stride_h + c, in.depth - c));
  }
};

// Which keys of exemplar (b, e) may be attended; their number.
inline int64_t allowed_keys(const CorrelateArgs& in, int64_t b, int64_t e, int64_t* index) {
  const bool* mask = in.key_mask ? in.key_mask + (b * in.exemplars + e) * in.keys : nullptr;
  int64_t count = 0;
  for (int64_t j = 0; j < in.keys; ++j)
    if (!mask || mask[j]) index[count++] = j;
  return count;
}

// Channels of `live` positions from x on, transposed and scaled: out[depth][columns].
template <typename T>
inline void pack_scaled(const T* x, int64_t depth, int64_t live, int64_t columns, int64_t stride, Acc<T> scale, Acc<T>* out) {
  using A = Acc<T>;
  pack(x, depth, live, columns, 1, stride, out);
  for (int64_t i = 0; i < depth * columns; i += lanes_of<A>) store<A>(out + i, load<A>(out + i) * splat<A>(scale));
}
