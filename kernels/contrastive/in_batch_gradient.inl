// Gradients of the rows of one side: summed over blocks in the wide type, then finished row by row.

// The sums, in the output itself where that is of the wide type.
template <typename A>
struct GradientSum {
  const Rows& rows;
  void* out;
  const bool in_place = rows.dtype == (std::is_same_v<A, double> ? DType::f64 : DType::f32);
  Scratch<A> own{in_place || !out ? 0 : rows.count * rows.depth, uncleared};
  A* data = in_place ? static_cast<A*>(out) : own.data;

  // Null where nobody asks for the gradient.
  GradientSum(const Rows& rows, void* out) : rows(rows), out(out) {}

  void clear(int64_t begin, int64_t end) const { std::fill(data + begin * rows.depth, data + end * rows.depth, A(0)); }
  void clear(const Parallel& parallel) const {
    if (out) for_row_ranges(parallel, 0, rows.count, rows.depth, [&](int64_t begin, int64_t end) { clear(begin, end); });
  }
};

// To the sum of a row join own * row + partner * (scale * other - difference * row), where `other` is the row of its partner. The
// finished gradient is multiplied by `factor`.
template <typename A>
struct RowTerms {
  A own = 0, partner = 0, scale = 0, difference = 0, factor = 1;
};

// Which rows of a side have a partner: row i of [first, last) has row i + offset of the other side.
struct Partners {
  int64_t first, last, offset;

  Partners mirrored() const { return {first + offset, last + offset, -offset}; }
};

// Finishes rows [begin, end) of a side; terms(i, paired) gives the RowTerms. Normalisation is led back through: x - r <r, x> for the
// unit row r. `along[i]`, if asked for, gets <row, x> from before.
template <typename A, typename Terms>
inline void finish_rows(
    const GradientSum<A>& sum, const Side<A>& side, const Side<A>& other, const Partners& partners, int64_t begin, int64_t end,
    double* along, Terms&& terms) {
  constexpr int64_t lanes = lanes_of<A>;
  const int64_t depth = side.rows.depth;
  with_type(side.rows.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<Acc<T>, A>) {
      auto finish = [&](int64_t from, int64_t to, const Side<A>& opposite, int64_t offset, bool paired) {
        for_partners(side, opposite, from, to, offset, [&](int64_t i, const Row<A>& row, const Row<A>& partner) {
          const RowTerms<A> t = terms(i, paired);
          A* x = sum.data + i * depth;
          V<A> inner = {};
          for (int64_t d = 0; d < depth; d += lanes) {
            const int64_t n = std::min(lanes, depth - d);
            const V<A> r = row[d], pair = partner[d] * splat<A>(t.scale) - r * splat<A>(t.difference);
            const V<A> y = load_up_to(x + d, n) + r * splat<A>(t.own) + pair * splat<A>(t.partner);
            inner += r * y;
            store_up_to<A>(x + d, y, n);
          }
          const double with_row = double(sum_lanes<A>(inner));
          if (along) along[i] = with_row;
          const double scale = side.scale(i);  // to the unit row, from the row as it is read
          const A back = side.projected(i) ? A(with_row * scale * scale) : A(0);
          T* out = static_cast<T*>(sum.out) + i * depth;
          for (int64_t d = 0; d < depth; d += lanes) {
            const int64_t n = std::min(lanes, depth - d);
            const V<A> y = load_up_to(x + d, n) - row[d] * splat<A>(back);
            store_up_to<T>(out + d, y * splat<A>(t.factor), n);
          }
        });
      };
      finish(begin, std::min(end, partners.first), side, 0, false);
      finish(std::max(begin, partners.first), std::min(end, partners.last), other, partners.offset, true);
      finish(std::max(begin, partners.last), end, side, 0, false);
    }
  });
}

// All rows of a side.
template <typename A, typename Terms>
inline void finish_side(
    const GradientSum<A>& sum, const Side<A>& side, const Side<A>& other, const Partners& partners, double* along,
    const Parallel& parallel, Terms&& terms) {
  if (!sum.out) return;
  for_row_ranges(parallel, 0, side.rows.count, side.rows.depth, [&](int64_t begin, int64_t end) {
    finish_rows(sum, side, other, partners, begin, end, along, terms);
  });
}
