// One walk over the pixels of upsampled maps, for any loss: see NOTES_map_loss.md.
//
// Output rows that lie between the same two input rows are taken together, one register of columns at a time: both input rows are
// interpolated along the columns once, then every pixel is one multiply-add, and the gradient gathers in registers as two sums, that of
// the slopes and that of the slopes by their share of the lower row. Only then is it brought back along the columns.

// How maps are cut: by their shape alone.
template <typename A>
struct MapPlan {
  const MapAxis<A> rows;
  const MapColumns<A> columns;
  Scratch<A> transposed;
  int64_t band_rows, bands, most_rows = 0;  // output rows of a band; input rows that one may touch

  MapPlan(const SmallMaps& x, int64_t height, int64_t width, int64_t channels, bool align_corners)
      : rows(x.height, height, align_corners), columns(x.width, width, align_corners), transposed(x.width * columns.most) {
    columns.transposed(transposed.data);
    constexpr int64_t work = int64_t(1) << 19;
    band_rows = std::min(height, std::max<int64_t>(8, work / (columns.width * channels)));
    bands = (height + band_rows - 1) / band_rows;
    for (int64_t band = 0; band < bands; ++band) most_rows = std::max(most_rows, end_row(band) - first_row(band));
  }
  int64_t first_row(int64_t band) const { return rows.first[band * band_rows]; }
  int64_t end_row(int64_t band) const { return rows.second(std::min((band + 1) * band_rows, rows.out) - 1) + 1; }
};

constexpr int64_t rows_together = 16;

// Rows of one block that lie between the same two input rows.
template <typename A>
struct MapRows {
  int64_t count;
  const A* share;  // [count]
};

// `Pixels` knows targets and loss:
//   channels: of the logits it wants; the difference of two where `binary`
//   read(b, v, count, codes): targets of output rows from v on, [count][width], below 0 where there is none
//   block(rows, b, v, block, upper, slope, codes, sums, lower): one register of columns
template <typename T, typename Pixels>
struct MapWalk {
  using A = Acc<T>;
  using Bits = typename Vec<A>::bits;
  static constexpr int64_t lanes = lanes_of<A>;

  const SmallMaps& x;
  const MapPlan<A>& plan;
  Pixels& pixels;
  const MapColumns<A>& columns = plan.columns;
  const int64_t channels = pixels.channels, line = columns.width + columns.most;
  Scratch<A> logits{channels * plan.most_rows * columns.pitch};
  Scratch<A> upper{channels * lanes}, slope{channels * lanes}, sums{channels * lanes}, lower{channels * lanes};
  Scratch<A> gathered[2] = {Scratch<A>(channels * line), Scratch<A>(channels * line)};  // of two neighbouring input rows
  Scratch<Bits> codes{rows_together * columns.width};

  A value(int64_t b, int64_t c, int64_t r, int64_t j) const {
    const T* at = static_cast<const T*>(x.data) + b * x.stride_b + r * x.stride_h + j * x.stride_w;
    if (Pixels::binary && x.channels == 2) return to_float(at[x.stride_c]) - to_float(at[0]);
    return to_float(at[c * x.stride_c]);
  }

  // The band's gradient goes to grad[channels][rows][x.width], rows from `first` on; those it does not touch are 0 already.
  void band(int64_t b, int64_t band, A* grad, int64_t first, int64_t rows) {
    const int64_t low = plan.first_row(band), end = plan.end_row(band);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t r = low; r < end; ++r)
        for (int64_t j = 0; j < x.width; ++j) logits[(c * plan.most_rows + r - low) * columns.pitch + j] = value(b, c, r, j);

    int64_t row = low;  // of gathered[0]
    const auto flush = [&] {
      for (int64_t c = 0; c < channels && grad; ++c)
        if (row < end) columns.down(gathered[0].data + c * line, plan.transposed.data, grad + (c * rows + row - first) * x.width);
      std::swap(gathered[0].data, gathered[1].data);
      std::memset(gathered[1].data, 0, size_t(channels * line) * sizeof(A));
      ++row;
    };
    std::memset(gathered[0].data, 0, size_t(channels * line) * sizeof(A));
    std::memset(gathered[1].data, 0, size_t(channels * line) * sizeof(A));
    const int64_t last = std::min((band + 1) * plan.band_rows, plan.rows.out);
    for (int64_t v = band * plan.band_rows; v < last;) {
      const int64_t y = plan.rows.first[v];
      int64_t n = 1;
      while (n < rows_together && v + n < last && plan.rows.first[v + n] == y) ++n;
      while (row < y) flush();
      pixels.read(b, v, n, codes.data);
      for (int64_t block = 0; block < columns.blocks; ++block) one(b, v, n, block, y - low, plan.rows.second(v) - low);
      v += n;
    }
    while (row < end) flush();
  }

  void one(int64_t b, int64_t v, int64_t n, int64_t block, int64_t above, int64_t below) {
    for (int64_t c = 0; c < channels; ++c) {
      const A* from = logits.data + c * plan.most_rows * columns.pitch;
      const V<A> first = columns.up(from + above * columns.pitch, block);
      store<A>(upper.data + c * lanes, first);
      store<A>(slope.data + c * lanes, columns.up(from + below * columns.pitch, block) - first);
      store<A>(sums.data + c * lanes, V<A>{});
      store<A>(lower.data + c * lanes, V<A>{});
    }
    const MapRows<A> rows{n, plan.rows.share.data + v};
    pixels.block(rows, b, v, block, upper.data, slope.data, codes.data + block * lanes, sums.data, lower.data);
    if (!pixels.backward) return;
    for (int64_t c = 0; c < channels; ++c) {
      A *to = gathered[0].data + c * line + block * lanes, *next = gathered[1].data + c * line + block * lanes;
      const V<A> all = load<A>(sums.data + c * lanes), part = load<A>(lower.data + c * lanes);
      if (above == below) {
        store<A>(to, load<A>(to) + all);
      } else {
        store<A>(to, load<A>(to) + (all - part));
        store<A>(next, load<A>(next) + part);
      }
    }
  }
};

// Adds up what bands of one sample found, in their order: sums [batch][bands] and gradients [batch][bands][channels][most_rows][w].
template <typename A>
inline void add_bands(const SmallMaps& x, const MapPlan<A>& plan, int64_t channels, const A* parts, A* grad, const Parallel& parallel) {
  const int64_t w = x.width, size = channels * plan.most_rows * w;
  for_tasks(parallel, x.batch * channels, x.batch * plan.bands * size, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      A* to = grad + t * x.height * w;
      std::fill_n(to, x.height * w, A(0));
      for (int64_t band = 0; band < plan.bands; ++band) {
        const int64_t first = plan.first_row(band), count = (plan.end_row(band) - first) * w;
        const A* from = parts + (t / channels * plan.bands + band) * size + t % channels * plan.most_rows * w;
        for (int64_t i = 0; i < count; ++i) to[first * w + i] += from[i];
      }
    }
  });
}

// Walks all maps with Pixels made by `make()`, one for each run of tasks; sums[batch][bands][2] get what they found: loss and weight.
template <typename T, typename Make>
inline void walk_maps(
    const SmallMaps& x, const MapPlan<Acc<T>>& plan, int64_t channels, Acc<T>* grad, double* sums, const Parallel& parallel,
    Make&& make) {
  using A = Acc<T>;
  const bool parted = grad && plan.bands > 1;
  const int64_t size = channels * plan.most_rows * x.width, whole = channels * x.height * x.width;
  Scratch<A> parts(parted ? x.batch * plan.bands * size : 0);
  if (grad && !parted) std::fill_n(grad, x.batch * whole, A(0));
  const int64_t work = x.batch * channels * plan.rows.out * plan.columns.width;
  for_tasks(parallel, x.batch * plan.bands, work, [&](int64_t begin, int64_t end) {
    auto pixels = make();
    MapWalk<T, decltype(pixels)> walk{x, plan, pixels};
    for (int64_t t = begin; t < end; ++t) {
      const int64_t b = t / plan.bands, band = t % plan.bands;
      pixels.loss = pixels.total = 0;
      A* to = !grad ? nullptr : parted ? parts.data + t * size : grad + b * whole;
      walk.band(b, band, to, parted ? plan.first_row(band) : 0, parted ? plan.most_rows : x.height);
      sums[2 * t] = pixels.loss, sums[2 * t + 1] = pixels.total;
    }
  });
  if (parted) add_bands(x, plan, channels, parts.data, grad, parallel);
}

// One number of each sample: what its bands found, added up in their order.
template <typename A>
inline void add_sums(const double* sums, int64_t batch, int64_t bands, int64_t which, void* out) {
  for (int64_t b = 0; b < batch; ++b) {
    double sum = 0;
    for (int64_t band = 0; band < bands; ++band) sum += sums[2 * (b * bands + band) + which];
    static_cast<A*>(out)[b] = A(sum);
  }
}
