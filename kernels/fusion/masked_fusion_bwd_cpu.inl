// Two modalities become one, backward: gradients of values and weights in one read of the gradient and of what is there.

// Gradient of one weight: kept by row or element, or summed over rows, first within fixed blocks of them.
template <typename T>
struct FusionWeightGradient {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>;

  const FusionWeight& weight;
  A* to;        // of the weight's shape
  A* partial;   // [blocks][depth or 1]
  int64_t depth;
  // Sums over channels: of the row, wide and with what rounding lost (terms of both signs may leave little), and of its last few vectors.
  double row = 0, lost = 0;
  V<A> run{};

  bool wanted() const { return to != nullptr; }
  int64_t columns() const { return weight.stride_d ? depth : 1; }

  void begin_block(int64_t block) const {
    if (wanted() && !weight.stride_r)
      for (int64_t d = 0; d < columns(); ++d) partial[block * columns() + d] = 0;
  }
  void add(int64_t block, int64_t r, int64_t d, V<A> x) {
    const int64_t left = depth - d;
    if (!weight.stride_d) {
      if (left < lanes) x = trimmed(x, left);
      run += x;
      if (d / lanes % 16 == 15) end_run();
    } else if (weight.stride_r) {
      store_up_to(to + r * weight.stride_r + d, x, left);
    } else {
      A* sum = partial + block * depth + d;
      store_up_to(sum, load_up_to(sum, left) + x, left);
    }
  }
  void end_row(int64_t block, int64_t r) {
    if (!wanted() || weight.stride_d) return;
    end_run();
    const A sum = A(row + lost);
    row = lost = 0;
    if (weight.stride_r) to[r * weight.stride_r] = sum;
    else partial[block] += sum;
  }
  void end_run() {
    double some = 0;
    for (int64_t i = 0; i < lanes; ++i) some += run[i];
    const double sum = row + some, added = sum - row;  // Knuth's two-sum
    lost += (row - (sum - added)) + (some - added);
    row = sum;
    run = V<A>{};
  }
  void finish(int64_t blocks) const {
    if (!wanted() || weight.stride_r) return;
    for (int64_t d = 0; d < columns(); d += lanes) {
      const int64_t left = columns() - d;
      V<A> sum{};
      for (int64_t block = 0; block < blocks; ++block) sum += load_up_to(partial + block * columns() + d, left);
      store_up_to(to + d, sum, left);
    }
  }
  static V<A> trimmed(V<A> x, int64_t left) {
    for (int64_t i = left; i < lanes; ++i) x[i] = 0;
    return x;
  }
};

template <typename T>
struct FusionBackward {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>;
  using Row = FusionRow<T>;

  const FusionBwdArgs& args;
  const FusionArgs& in = args.in;
  FusionWeightGradient<T> weight_a{in.weight_a, static_cast<A*>(args.dweight_a), static_cast<A*>(args.partial_a), in.depth_a};
  FusionWeightGradient<T> weight_v{in.weight_v, static_cast<A*>(args.dweight_v), static_cast<A*>(args.partial_v), in.depth_v};

  void run(int64_t block) {
    weight_a.begin_block(block);
    weight_v.begin_block(block);
    for (int64_t r = block * fusion_block; r < std::min((block + 1) * fusion_block, in.rows); ++r) {
      const Row a(in.a, in.depth_a, in.mask_a, in.weight_a, r), v(in.v, in.depth_v, in.mask_v, in.weight_v, r);
      const T* grad = static_cast<const T*>(args.grad) + r * in.depth_out();
      T *da = static_cast<T*>(args.da) + r * in.depth_a, *dv = static_cast<T*>(args.dv) + r * in.depth_v;
      if (in.mode == FusionArgs::concat) {
        alone(block, r, a, weight_a, grad, in.depth_a, da);
        alone(block, r, v, weight_v, grad + in.depth_a, in.depth_v, dv);
      } else if (in.mode == FusionArgs::film) {
        film(a, v, grad, da, dv);
      } else {
        joined(block, r, a, v, grad, da, dv);
      }
      weight_a.end_row(block, r);
      weight_v.end_row(block, r);
    }
  }

  void joined(int64_t block, int64_t r, const Row& a, const Row& v, const T* grad, T* da, T* dv) {
    const bool any = a.x || v.x;
    for (int64_t d = 0; d < in.depth_a; d += lanes) {
      const int64_t left = in.depth_a - d;
      const V<A> g = any ? load_up_to(grad + d, left) : V<A>{};
      const M<A> on_a = a.there(d, left), on_v = v.there(d, left);
      const FusionFactors<T> by(in, a, v, d, left, on_a, on_v);
      store_up_to(da + d, select<A>(on_a, by.a * g, V<A>{}), left);
      store_up_to(dv + d, select<A>(on_v, by.v * g, V<A>{}), left);
      if (!weight_a.wanted() && !weight_v.wanted()) continue;
      const V<A> ga = a.x ? select<A>(on_a, g * a.value(d, left, on_a), V<A>{}) : V<A>{};
      const V<A> gv = v.x ? select<A>(on_v, g * v.value(d, left, on_v), V<A>{}) : V<A>{};
      const V<A> zero{};
      if (in.mode == FusionArgs::gated) {
        const V<A> both = select<A>(on_a & on_v, ga - gv, in.renormalize ? zero : ga - gv);
        weight_a.add(block, r, d, by.own_a * by.own_v * both);
        continue;
      }
      const V<A> alone_v = in.renormalize ? select<A>(on_a, zero, gv) : zero, alone_a = in.renormalize ? select<A>(on_v, zero, ga) : zero;
      if (weight_a.wanted()) weight_a.add(block, r, d, ga + alone_v);
      if (weight_v.wanted()) weight_v.add(block, r, d, gv + alone_a);
    }
  }

  void alone(int64_t block, int64_t r, const Row& x, FusionWeightGradient<T>& weight, const T* grad, int64_t depth, T* dx) {
    for (int64_t d = 0; d < depth; d += lanes) {
      const int64_t left = depth - d;
      const M<A> on = x.there(d, left);
      const V<A> g = x.x ? select<A>(on, load_up_to(grad + d, left), V<A>{}) : V<A>{};
      store_up_to(dx + d, x.x && x.weight ? select<A>(on, g * x.factor(d, left), V<A>{}) : g, left);
      if (weight.wanted()) weight.add(block, r, d, x.x ? select<A>(on, g * x.value(d, left, on), V<A>{}) : V<A>{});
    }
  }

  void film(const Row& a, const Row& v, const T* grad, T* da, T* dv) const {
    for (int64_t d = 0; d < in.depth_a; d += lanes) {
      const int64_t left = in.depth_a - d;
      const V<A> g = load_up_to(grad + d, left);
      const M<A> on_a = a.there(d, left), on_v = v.there(d, left);
      const V<A> absent = splat<A>(A(in.renormalize ? 1 : 0));
      const V<A> gamma = v.x ? select<A>(on_v, load_up_to(v.x + d, left), absent) : absent;
      store_up_to(da + d, select<A>(on_a, gamma * g, V<A>{}), left);
      store_up_to(dv + d, select<A>(on_v, g * a.value(d, left, on_a), V<A>{}), left);
      store_up_to(dv + in.depth_a + d, select<A>(on_v, g, V<A>{}), left);
    }
  }
};

inline void masked_fusion_bwd_cpu(const FusionBwdArgs& args, const Parallel& parallel) {
  with_type(args.in.dtype, [&](auto type) {
    using Backward = FusionBackward<decltype(type)>;
    const int64_t blocks = (args.in.rows + fusion_block - 1) / fusion_block;
    for_tasks(parallel, blocks, 2 * args.in.rows * args.in.depth_out(), [&](int64_t begin, int64_t end) {
      Backward backward{args};
      for (int64_t block = begin; block < end; ++block) backward.run(block);
    });
    const Backward backward{args};
    backward.weight_a.finish(blocks);
    backward.weight_v.finish(blocks);
  });
}
