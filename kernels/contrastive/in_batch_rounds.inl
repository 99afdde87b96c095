// Which blocks are multiplied when. Work is cut by shape alone; within a round no two tasks touch the same rows of either side, so
// their sums need neither locks nor copies, and each is added up in one order whatever the number of threads.

// Blocks dealt out in consecutive groups, as even as they come.
struct Groups {
  int64_t blocks, count;

  int64_t begin(int64_t group) const { return blocks * group / count; }
  int64_t end(int64_t group) const { return blocks * (group + 1) / count; }
};

// As many as there can be tasks at once. Groups of four blocks reuse what is packed; small batches are rather cut for eight threads.
inline int64_t groups_of(int64_t rows) {
  const int64_t blocks = blocks_of(rows);
  return std::clamp<int64_t>(std::max(blocks / 4, std::min<int64_t>(blocks, 8)), 1, 32);
}

// Multiply-adds in units of what for_tasks calls an element.
template <typename A>
inline int64_t product_work(const Side<A>& a, const Side<A>& b) {
  return a.rows.count * b.rows.count / 64 * a.rows.depth;
}

// f(tiles, group of a, group of b) for every pair of groups. Both sides have as many groups, of which some may be empty.
template <typename A, typename F>
inline void for_group_pairs(const Side<A>& a, const Side<A>& b, int64_t groups, const Parallel& parallel, F&& f) {
  for (int64_t round = 0; round < groups; ++round) {
    for_tasks(parallel, groups, product_work(a, b) / groups, [&](int64_t begin, int64_t end) {
      Tiles<A> tiles(a, b);
      for (int64_t task = begin; task < end; ++task) f(tiles, task, (task + round) % groups);
    });
  }
}

// f(tiles, group, group) once for every two groups of one side, the first not after the second: a group with itself, then all
// pairs as in a tournament, where every group meets another in each round.
template <typename A, typename F>
inline void for_group_matches(const Side<A>& z, int64_t groups, const Parallel& parallel, F&& f) {
  const int64_t players = groups + groups % 2, work = product_work(z, z) / std::max<int64_t>(groups, 1);
  for_tasks(parallel, groups, work / 2, [&](int64_t begin, int64_t end) {
    Tiles<A> tiles(z, z);
    for (int64_t task = begin; task < end; ++task) f(tiles, task, task);
  });
  for (int64_t round = 0; round + 1 < players; ++round) {
    for_tasks(parallel, players / 2, work / 2, [&](int64_t begin, int64_t end) {
      Tiles<A> tiles(z, z);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t others = players - 1;  // the last player stays, the others go round
        const int64_t one = task == 0 ? others : (round + task) % others, two = (round + others - task) % others;
        if (std::max(one, two) < groups) f(tiles, std::min(one, two), std::max(one, two));
      }
    });
  }
}

// f(first row, rows) for the blocks [begin, end) of a side.
template <typename F>
inline void for_blocks(int64_t begin, int64_t end, int64_t rows, F&& f) {
  for (int64_t block = begin; block < end; ++block)
    f(block * block_rows, std::min(block_rows, rows - block * block_rows));
}
