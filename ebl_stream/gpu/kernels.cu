// Streaming Fourier accumulation on CUDA. What is meant by each array, and all of
// the mathematics, is in ebl_stream/numerics/fourier_plan.py; here is only what has
// to run on the card. Two detector rows are the real and imaginary part of one
// complex "pair"; the 32 lanes of a warp are 32 pairs, so that one set of weights
// serves them all and each grid point is one contiguous access.
//
//   padded, spectrum   [angle, pair, n_padded]        float2
//   grid               [half, kx, ky, pair]           float2, kx and ky of `stride`
//   plane              [pair, kx, ky], [pair, y, kx]  float2, pairs of one chunk
//   slices             [row, y, x]                    float
//
// Sizes need not be multiples of anything. No float is turned into a grid index
// here: corners and table rows come from the host, where float64 decides.

typedef unsigned char uint8;
typedef unsigned short uint16;

constexpr int WARP = 32;
constexpr int PACK_THREADS = 256;  // of pack_*
constexpr int SCATTER_WARPS = 4;   // of scatter_*: block (32, 4)
constexpr int TILE_WARPS = 8;      // of blend and turn: block (32, 8)
constexpr int EDGE_COLUMNS = 4;    // as in fourier_plan.py

// ------------------------------------------------------------------------- pack

struct Values {  // line integrals, as they come
  const float* values;  // [angle, row, column]
  __device__ float at(long long frame_pixel, long long) const {
    return values[frame_pixel];
  }
};

template <typename Raw>
struct Counts {  // what the detector counted, to line integrals
  const Raw* raw;     // [angle, row, column]
  const float* dark;  // [row, column]
  const float* beam;  // [row, column], flat - dark, above 0
  float clip;         // smallest transmission
  // An in-plane filter of the transmission (zingers) belongs here: it may read the
  // neighbors of the same frame through transmission().
  __device__ float transmission(long long frame_pixel, long long pixel) const {
    return ((float)raw[frame_pixel] - dark[pixel]) / beam[pixel];
  }
  __device__ float at(long long frame_pixel, long long pixel) const {
    return -logf(fmaxf(transmission(frame_pixel, pixel), clip));
  }
};

// Line integrals to padded pairs. One block: PACK_THREADS samples of one pair, for
// all angles; so the running total needs no atomics and is the same in every run.
// With edge padding the sides go over into one another, see FourierPlan.edge_blend.
template <typename Source>
__device__ void pack(const Source source, float2* padded, double* total,
                     const float* edge_blend, int n_angles, int n_rows, int n_columns,
                     int n_padded) {
  __shared__ float edge[2][2][2][EDGE_COLUMNS];  // [odd angle, row, side, column]
  const int thread = threadIdx.x, pair = blockIdx.y, n_pairs = gridDim.y;
  const int sample = blockIdx.x * PACK_THREADS + thread;
  const bool has_second = 2 * pair + 1 < n_rows;
  const bool is_column = sample < n_columns;
  const int n_edge = min(EDGE_COLUMNS, n_columns);
  const long long first = (long long)(2 * pair) * n_columns;
  double sum_first = 0, sum_second = 0;
  for (int angle = 0; angle < n_angles; ++angle) {
    const long long frame = (long long)angle * n_rows * n_columns;
    const int row = thread / (2 * EDGE_COLUMNS), side = thread / EDGE_COLUMNS % 2;
    const int step = thread % EDGE_COLUMNS;
    if (edge_blend && row < 2 && step < n_edge) {
      const int column = side ? n_columns - 1 - step : step;
      const long long pixel = first + (long long)row * n_columns + column;
      edge[angle % 2][row][side][step] =
          row == 0 || has_second ? source.at(frame + pixel, pixel) : 0;
    }
    // One is enough: the next angle writes the other half of edge.
    __syncthreads();
    float2 value = make_float2(0, 0);
    if (is_column) {
      const long long one = first + sample, two = one + n_columns;
      value.x = source.at(frame + one, one);
      if (has_second) value.y = source.at(frame + two, two);
      sum_first += value.x;
      sum_second += value.y;
    } else if (edge_blend && sample < n_padded) {
      const float right = edge_blend[sample - n_columns] / n_edge;
      const float left = 1.0f / n_edge - right;
      for (int k = 0; k < n_edge; ++k) {
        value.x += left * edge[angle % 2][0][0][k] + right * edge[angle % 2][0][1][k];
        value.y += left * edge[angle % 2][1][0][k] + right * edge[angle % 2][1][1][k];
      }
    }
    if (sample < n_padded)
      padded[((long long)angle * n_pairs + pair) * n_padded + sample] = value;
  }
  if (total && is_column) {
    total[first + sample] += sum_first;
    if (has_second) total[first + n_columns + sample] += sum_second;
  }
}

// Grid of blocks: (n_padded / PACK_THREADS, pair). edge_blend and total may be null.
extern "C" __global__ void pack_values(const float* values, float2* padded,
                                       double* total, const float* edge_blend,
                                       int n_angles, int n_rows, int n_columns,
                                       int n_padded) {
  pack(Values{values}, padded, total, edge_blend, n_angles, n_rows, n_columns,
       n_padded);
}

extern "C" __global__ void pack_uint8(const uint8* raw, const float* dark,
                                      const float* beam, float clip, float2* padded,
                                      double* total, const float* edge_blend,
                                      int n_angles, int n_rows, int n_columns,
                                      int n_padded) {
  pack(Counts<uint8>{raw, dark, beam, clip}, padded, total, edge_blend, n_angles,
       n_rows, n_columns, n_padded);
}

extern "C" __global__ void pack_uint16(const uint16* raw, const float* dark,
                                       const float* beam, float clip, float2* padded,
                                       double* total, const float* edge_blend,
                                       int n_angles, int n_rows, int n_columns,
                                       int n_padded) {
  pack(Counts<uint16>{raw, dark, beam, clip}, padded, total, edge_blend, n_angles,
       n_rows, n_columns, n_padded);
}

extern "C" __global__ void pack_float32(const float* raw, const float* dark,
                                        const float* beam, float clip, float2* padded,
                                        double* total, const float* edge_blend,
                                        int n_angles, int n_rows, int n_columns,
                                        int n_padded) {
  pack(Counts<float>{raw, dark, beam, clip}, padded, total, edge_blend, n_angles,
       n_rows, n_columns, n_padded);
}

// ---------------------------------------------------------------------- scatter

// Adds to global memory without waiting for it: one instruction on sm_90, two before.
__device__ __forceinline__ void reduce(float2* place, float2 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  // No "memory" clobber: nothing in these kernels reads the grid.
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(place), "f"(value.x),
               "f"(value.y));
#else
  atomicAdd(&place->x, value.x);
  atomicAdd(&place->y, value.y);
#endif
}

// The TAPS x TAPS grid points under the sample at hand, of one pair. Neighboring
// samples of a spoke share most of theirs, so sums wait in registers and only what
// the window leaves behind goes to memory: about 3 points a sample instead of 16.
template <int TAPS>
struct Window {
  float2 sum[TAPS][TAPS];  // [kx, ky]
  int kx, ky;              // of sum[0][0] on the grid
  float2* grid;            // of this half and pair
  long long step_x, step_y;
  bool is_pair;            // the last warp of a row may have lanes to spare

  __device__ __forceinline__ void leave(int i, int j) {
    if (is_pair) reduce(grid + (kx + i) * step_x + (ky + j) * step_y, sum[i][j]);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < TAPS; ++i)
#pragma unroll
      for (int j = 0; j < TAPS; ++j) sum[i][j] = make_float2(0, 0);
  }
  __device__ __forceinline__ void leave_all() {
#pragma unroll
    for (int i = 0; i < TAPS; ++i)
#pragma unroll
      for (int j = 0; j < TAPS; ++j) leave(i, j);
  }
  __device__ __forceinline__ void move_x(bool up) {
#pragma unroll
    for (int j = 0; j < TAPS; ++j) {
      if (up) {
        leave(0, j);
#pragma unroll
        for (int i = 0; i < TAPS - 1; ++i) sum[i][j] = sum[i + 1][j];
        sum[TAPS - 1][j] = make_float2(0, 0);
      } else {
        leave(TAPS - 1, j);
#pragma unroll
        for (int i = TAPS - 1; i > 0; --i) sum[i][j] = sum[i - 1][j];
        sum[0][j] = make_float2(0, 0);
      }
    }
    kx += up ? 1 : -1;
  }
  __device__ __forceinline__ void move_y(bool up) {
#pragma unroll
    for (int i = 0; i < TAPS; ++i) {
      if (up) {
        leave(i, 0);
#pragma unroll
        for (int j = 0; j < TAPS - 1; ++j) sum[i][j] = sum[i][j + 1];
        sum[i][TAPS - 1] = make_float2(0, 0);
      } else {
        leave(i, TAPS - 1);
#pragma unroll
        for (int j = TAPS - 1; j > 0; --j) sum[i][j] = sum[i][j - 1];
        sum[i][0] = make_float2(0, 0);
      }
    }
    ky += up ? 1 : -1;
  }
  // All lanes of a warp go the same way.
  __device__ __forceinline__ void go(int to_x, int to_y) {
    if (abs(to_x - kx) > 1 || abs(to_y - ky) > 1) {
      leave_all();
      clear();
      kx = to_x;
      ky = to_y;
    }
    if (to_x != kx) move_x(to_x > kx);
    if (to_y != ky) move_y(to_y > ky);
  }
};

// Filters spokes and spreads them. A warp takes samples_per_warp neighboring samples
// of one angle and 32 pairs, in tiles of 32 x 32 that are turned in shared memory;
// warps share nothing. Grid of blocks: (samples, pairs / 32, 2 * angle + half).
template <int TAPS>
__device__ __forceinline__ void scatter(float2* grid, const float2* spectrum,
                                        const float2* factor, const int* corner,
                                        const uint16* fraction, const float* table,
                                        const float* shares, long long half_step,
                                        int n_padded, int n_pairs, int stride,
                                        int samples_per_warp) {
  __shared__ float2 spoke[SCATTER_WARPS][WARP][WARP + 1];  // [warp, pair, sample]
  __shared__ __align__(16) float weight[SCATTER_WARPS][WARP][2 * TAPS];  // kx taps, then ky taps
  __shared__ int2 place[SCATTER_WARPS][WARP];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int angle = blockIdx.z / 2, half = blockIdx.z % 2;
  const float share = shares[blockIdx.z];
  const int n_samples = n_padded + 1, pair0 = blockIdx.y * WARP;
  const int first = (blockIdx.x * SCATTER_WARPS + warp) * samples_per_warp;
  const int last = min(first + samples_per_warp, n_samples);
  if (share == 0 || first >= last) return;

  Window<TAPS> window;
  window.is_pair = pair0 + lane < n_pairs;
  window.grid = grid + half * half_step + pair0 + lane;
  window.step_y = n_pairs;
  window.step_x = (long long)stride * n_pairs;
  window.clear();
  const int start = corner[(long long)angle * n_samples + first];
  window.kx = start / stride;
  window.ky = start % stride;

  for (int tile = first; tile < last; tile += WARP) {
    const int sample = tile + lane;
    const bool is_sample = sample < last;
    float2 f = make_float2(0, 0);
    if (is_sample) {
      const long long at = (long long)angle * n_samples + sample;
      place[warp][lane] = make_int2(corner[at] / stride, corner[at] % stride);
      const float* along_x = table + (int)fraction[2 * at] * TAPS;
      const float* along_y = table + (int)fraction[2 * at + 1] * TAPS;
#pragma unroll
      for (int k = 0; k < TAPS; ++k) {
        weight[warp][lane][k] = along_x[k];
        weight[warp][lane][TAPS + k] = along_y[k];
      }
      f = make_float2(factor[sample].x * share, factor[sample].y * share);
    }
    // Spokes run from -1/2 to +1/2, the transform from 0 over 1/2 to -1/n_padded.
    const int bin = sample < n_padded / 2 ? sample + n_padded / 2 : sample - n_padded / 2;
    const float2* from = spectrum + ((long long)angle * n_pairs + pair0) * n_padded + bin;
#pragma unroll 8
    for (int k = 0; k < WARP; ++k) {
      float2 z = make_float2(0, 0);
      if (is_sample && pair0 + k < n_pairs) z = from[(long long)k * n_padded];
      spoke[warp][k][lane] = make_float2(z.x * f.x - z.y * f.y, z.x * f.y + z.y * f.x);
    }
    __syncwarp();
    const int n = min(WARP, last - tile);
    for (int k = 0; k < n; ++k) {
      window.go(place[warp][k].x, place[warp][k].y);
      const float2 z = spoke[warp][lane][k];
#pragma unroll
      for (int i = 0; i < TAPS; ++i) {
        const float re = z.x * weight[warp][k][i], im = z.y * weight[warp][k][i];
#pragma unroll
        for (int j = 0; j < TAPS; ++j) {
          window.sum[i][j].x += re * weight[warp][k][TAPS + j];
          window.sum[i][j].y += im * weight[warp][k][TAPS + j];
        }
      }
    }
    __syncwarp();
  }
  window.leave_all();
}

extern "C" __global__ void __launch_bounds__(128)
    scatter_4(float2* grid, const float2* spectrum, const float2* factor,
              const int* corner, const uint16* fraction, const float* table,
              const float* shares, long long half_step, int n_padded, int n_pairs,
              int stride, int samples_per_warp) {
  scatter<4>(grid, spectrum, factor, corner, fraction, table, shares, half_step,
             n_padded, n_pairs, stride, samples_per_warp);
}

extern "C" __global__ void __launch_bounds__(128)
    scatter_6(float2* grid, const float2* spectrum, const float2* factor,
              const int* corner, const uint16* fraction, const float* table,
              const float* shares, long long half_step, int n_padded, int n_pairs,
              int stride, int samples_per_warp) {
  scatter<6>(grid, spectrum, factor, corner, fraction, table, shares, half_step,
             n_padded, n_pairs, stride, samples_per_warp);
}

// ------------------------------------------------------------------------- look

// Sums up to four grids (halves, and what is to be taken away), times the response,
// folds the margin back and turns the pairs outward: plane[pair, kx, ky]. With
// n_out < n_grid only the middle of the grid is taken: a binned look. The response is
// square and begins at stored index response_first of both axes. Grid of blocks:
// (n_out / 32, n_out, pairs of the chunk / 32).
extern "C" __global__ void blend(const float2* a, const float2* b, const float2* c,
                                 const float2* d, float weight_a, float weight_b,
                                 float weight_c, float weight_d, const float2* response,
                                 int response_first, int response_stride,
                                 float2* plane, int n_grid, int n_out, int stride,
                                 int margin, int n_pairs, int first_pair, int n_chunk) {
  __shared__ float2 tile[WARP][WARP + 1];
  const int lane = threadIdx.x, x = blockIdx.y, pair = blockIdx.z * WARP + lane;
  const int y0 = blockIdx.x * WARP, skip = (n_grid - n_out) / 2 + margin;
  const int middle = n_grid / 2 + margin, reach = n_grid / 2 + 2 * margin + 3;
  for (int k = threadIdx.y; k < WARP; k += TILE_WARPS) {
    float2 sum = make_float2(0, 0);
    if (y0 + k < n_out && pair < n_chunk) {
      for (int kx = (x + skip) % n_grid; kx < stride; kx += n_grid)
        for (int ky = (y0 + k + skip) % n_grid; ky < stride; ky += n_grid) {
          // Stored points beyond a crop belong to it only where nothing is cropped.
          if (n_out < n_grid && (kx != x + skip || ky != y0 + k + skip)) continue;
          // Spokes end on a circle.
          const int dx = kx - middle, dy = ky - middle;
          if (dx * dx + dy * dy > reach * reach) continue;
          const long long at =
              ((long long)kx * stride + ky) * n_pairs + first_pair + pair;
          float2 v = make_float2(weight_a * a[at].x, weight_a * a[at].y);
          if (b) v = make_float2(v.x + weight_b * b[at].x, v.y + weight_b * b[at].y);
          if (c) v = make_float2(v.x + weight_c * c[at].x, v.y + weight_c * c[at].y);
          if (d) v = make_float2(v.x + weight_d * d[at].x, v.y + weight_d * d[at].y);
          const long long row = (long long)(kx - response_first) * response_stride;
          const float2 r = response[row + ky - response_first];
          sum.x += v.x * r.x - v.y * r.y;
          sum.y += v.x * r.y + v.y * r.x;
        }
    }
    tile[k][lane] = sum;
  }
  __syncthreads();
  const int y = y0 + lane;
  for (int k = threadIdx.y; k < WARP; k += TILE_WARPS) {
    const int to = blockIdx.z * WARP + k;
    if (y < n_out && to < n_chunk)
      plane[((long long)to * n_out + x) * n_out + y] = tile[lane][k];
  }
}

// After the transform along ky: crops to the slice's rows and turns kx inward,
// [pair, kx, y] to [pair, y, kx]. Grid of blocks: (n_out / 32, n_slice / 32, pair).
extern "C" __global__ void turn(const float2* plane, float2* turned, int n_out,
                                int n_slice) {
  __shared__ float2 tile[WARP][WARP + 1];
  const int lane = threadIdx.x, x0 = blockIdx.x * WARP, y0 = blockIdx.y * WARP;
  const long long pair = blockIdx.z;
  // The transform holds the pixel at the axis first.
  const int from = (y0 + lane - n_slice / 2 + n_out) % n_out;
  for (int k = threadIdx.y; k < WARP; k += TILE_WARPS)
    if (y0 + lane < n_slice && x0 + k < n_out)
      tile[k][lane] = plane[(pair * n_out + x0 + k) * n_out + from];
  __syncthreads();
  for (int k = threadIdx.y; k < WARP; k += TILE_WARPS)
    if (y0 + k < n_slice && x0 + lane < n_out)
      turned[(pair * n_slice + y0 + k) * n_out + x0 + lane] = tile[lane][k];
}

// After the transform along kx: crops to the slice's columns, undoes the kernel and
// takes the pairs apart. Grid of blocks: (n_slice / 256, y, pair).
extern "C" __global__ void unpack(const float2* turned, const float* deapodization,
                                  float* slices, int n_out, int n_slice, int n_rows) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  const long long pair = blockIdx.z;
  if (x >= n_slice) return;
  const int from = (x - n_slice / 2 + n_out) % n_out;
  const float2 value = turned[(pair * n_slice + y) * n_out + from];
  const float scale = deapodization[x] * deapodization[y];
  const long long to = (2 * pair * n_slice + y) * n_slice + x;
  slices[to] = value.x * scale;
  if (2 * pair + 1 < n_rows) slices[to + (long long)n_slice * n_slice] = value.y * scale;
}
