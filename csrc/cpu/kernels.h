// The functions that are compiled once per instruction set, and their arguments.
//
// Activations are blocked: [image][channel block][row][column][16] float32, the last block padded.
// Every stride here counts floats. Only plain structs: this header is included by translation units
// built with different instruction sets, so nothing in it may emit code.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace fastgen {

constexpr int kBlock = 16;  // channels per block, the same for every instruction set

enum Act : int { kActNone = 0, kActRelu = 1, kActLeaky = 2, kActTanh = 3, kActSigmoid = 4 };
enum Combine : int { kCombineNone = 0, kCombineAdd = 1, kCombineMul = 2 };

// Layout of a packed input panel.
enum PanelFormat : int {
  kPanel16 = 0,     // [block][row][x][16]
  kPanel4 = 1,      // [row][x][channels], for at most 4 channels
  kPanelPlanar = 2  // [channel][row][x]
};

// A tensor of one image as seen by a kernel; strides count elements. Planar: `block` is the stride
// of a channel, and all strides are free. Otherwise the 16 channels of a block are neighbours.
struct View {
  const void* data;
  int64_t block, row, pixel;
  int planar;
};

// Loads a window of y = post(combine(pre(scale*x + shift), residual)) into a panel.
struct PackArgs {
  View src;
  View res;
  int dtype;           // DType of both
  int exact;           // nothing may be read behind the last channel (else: a multiple of 16)
  const float* scale;  // per channel, or null for no scale and shift
  const float* shift;
  int pre, combine, post;
  float pre_slope, post_slope;
  int channels;
  int rows, cols;                // of the window
  const int32_t *src_y, *src_x;  // source row and column of every window position; -1: zero
  const int32_t *res_y, *res_x;  // the same for the residual
  void* dst;                     // float, or bfloat16 with `bf16`
  int64_t dst_block, dst_row;    // kPanelPlanar: dst_block is the stride of a channel
  int format;
  int bf16;  // not for kPanelPlanar
  // When `store` is not null the loaded values of window rows [y0, y1) and columns [x0, x1) are
  // also written to a blocked tensor, rows by `store_y` of window rows, columns with the source's
  // numbers (kPanel16 only).
  void* store;  // float, or bfloat16 with `store_bf16`
  int store_bf16;
  const int32_t* store_y;
  int64_t store_block, store_row;
  int store_y0, store_y1, store_x0, store_x1;
  // pack_int8: dst are bytes, y*quant + zero rounded and held to 0..255, per channel (padded to
  // whole blocks). kPanel4 is [row][x][channels], kPanelPlanar [4 channels][row][x][4].
  const float *quant, *zero;
  int64_t dst_pixel;  // of kPanel16: 16 or, with dst_block 16, all channels
  float* line;        // room for a row of floats: [cols][16]
};

// One register tile: `pixels` neighbouring outputs of one row times up to two channel blocks. Panel
// and weights are float32; those of micro_bf16 bfloat16, the weights in pairs of inputs:
// [block of inputs][ky][kx][pair][nb*16][2]. An odd last input is paired with the one before it,
// whose weight is zero there; only a single one with what follows it. Those of micro_int8 are
// bytes, the weights in fours of inputs, [block of inputs][ky][kx][four][nb*16][4], with zeros
// behind the last input; the result is sum*scale + bias.
struct MicroArgs {
  const void* panel;    // first pixel, first tap
  const void* weights;  // [block of inputs][ky][kx][input][nb*16]
  const float* bias;    // nb*16
  const float* scale;   // nb*16, of micro_int8
  float* out;           // [pixel][nb*16]
  int64_t panel_block, panel_row;
  int blocks, last;  // input blocks; channels in the last one
  int kh, kw;
  int channels;  // of a tap: 16; of few channels all taps of a row lie side by side and are one
  int pixel;     // panel elements between neighbouring outputs: channels*stride
  int ahead;     // bring what the next tile reads, which comes right behind, into the cache
};

// Writes a tile of outputs: y = act(tile + residual), with statistics of y before it is rounded.
struct FinishArgs {
  float* tile;  // [pixel][nb*16]; overwritten when the output is planar
  int pixels, nb;
  int channels;  // of the tile that exist in the output
  int exact;     // nothing may be written behind the last channel
  void* out;
  int dtype;   // of out and residual
  int planar;  // as in View, of both
  int64_t out_block, out_pixel;
  const void* residual;  // or null
  int64_t res_block, res_pixel;
  int act;
  float slope;
  // Per channel block [pivot 16][mean - pivot 16][sum of squared deviations 16], or null; `before`
  // pixels are in them already.
  float* stats;
  int64_t before;
};

// y = act(rows + residual) from planar float32 rows to any strides and type.
struct RowsArgs {
  const float* rows;
  int64_t stride;  // from channel to channel
  int channels, pixels;
  void* out;
  const void* residual;  // or null
  int dtype;             // of both
  int64_t out_channel, out_pixel, res_channel, res_pixel;
  int act;
  float slope;
};

// Winograd transforms F(m_y x m_x, r x r) with n_y = m_y + r - 1 = 6 or 4 and m_x + r - 1 = 6, or
// with n_y = m_y = 1 across only (see winograd.inl).
struct WinogradInput {
  const float* panel;  // kPanel16 window
  int64_t panel_block, panel_row;
  // Or, with `rows`, straight from a blocked tensor of `dtype` (float32 or bfloat16): its row and
  // column for each one of the window, -1 for zeros.
  View src;
  int dtype;
  const int32_t *rows, *cols;
  int blocks, tiles_y, tiles_x, m_y, m_x, n_y;
  int bf16;   // of out, else float
  void* out;  // [n_y*6][block][tile][16]
  int64_t out_element;
};

// F(2x2,3x3) of bytes, see winograd_int8.inl.
struct Winograd2Input {
  const uint8_t* panel;  // window, [row][x][channels]
  int64_t panel_row;
  int channels, tiles_y, tiles_x;  // channels: a multiple of 16, at least 32
  const int16_t* scale;            // of each point, times 2^15
  const int16_t* centre;           // per channel, subtracted at point (1, 1)
  uint8_t* out;                    // [16][tile][channels]
  int64_t out_element;
};

struct WinogradOutput {
  const float* in;  // [n_y*6][tile][nb*16], one row of tiles
  int64_t in_element;
  int nb, tiles, m_y, m_x;
  const float* bias;
  float* out;  // [m_y][tiles*m_x pixels][nb*16]
  // Or, with m_y of 2 or 4 and m_x of 4, `finish` in one go: row i, of a blocked tensor, to
  // rows[i] or, where that is null, nowhere. No statistics, and of activations none, ReLU and
  // LeakyReLU only. residuals[i]: the residual's row, or null.
  const FinishArgs* finish;
  void* const* rows;
  const void* const* residuals;
};

// The same along the rows only (see winograd_rows.cpp): 6 rows become 6, one for each point.
enum LinesFormat : int {
  kLinesFloat = 0,
  kLinesBF16 = 1,
  kLinesPairs = 2  // 32 bits with bfloat16 of `in` (lower half) and of `other`
};
struct LinesInput {
  const float *in[6], *other[6];  // kLinesPairs: `other` is null for zeros
  int count;                      // floats, a multiple of 16
  int format;
  void* out;
  int64_t out_row;  // from point to point, in elements of 2 or 4 bytes
};

// 6 rows of products become 4 of outputs: in + bias[position % period], or bias[0] without one.
struct LinesOutput {
  const float* in;
  int64_t in_row;
  int count;  // floats, a multiple of 16
  const float* bias;
  int period;  // 0, 16 or 32
  float* out;
  int64_t out_row;
};

// Convolution with at most 4 output channels: vector lanes run over the pixels of one row. Panel
// and weights of small_bf16 are 32-bit pairs of bfloat16 of two inputs.
struct SmallArgs {
  const float* panel;    // kPanelPlanar, first pixel, first tap
  const float* weights;  // [input][ky][kx][outputs]
  const float* bias;
  int64_t panel_channel, panel_row;
  int inputs, outputs, kh, kw;
  int pixels;
  float* out;  // planar
  int64_t out_channel;
  int act;
  float slope;
};

// The same from bytes: y = act(sum*scale + bias).
struct SmallInt8Args {
  const uint8_t* panel;    // [4 channels][row][x][4], first pixel, first tap
  const int32_t* weights;  // [4 channels][ky][kx][outputs] of four signed bytes
  const float *scale, *bias;
  int64_t panel_block, panel_row;
  int blocks, outputs, kh, kw;
  int pixels;
  float* out;  // planar
  int64_t out_channel;
  int act;
  float slope;
};

// A part of a linear layer: some images, blocks of 16 outputs and inputs. Weights are float32,
// those of bfloat16 in pairs of inputs: [block][input or pair][16 or 16 pairs], an odd last input
// with 0.
constexpr int kLinearInputs = 512;              // of a call for several images
constexpr int kLinearRow = kLinearInputs + 16;  // elements from image to image: other cache sets
struct LinearArgs {
  const void* x;  // [image][kLinearRow], float or bfloat16; behind an odd number of these another
  const void* weights;
  int64_t block;  // floats from block to block
  int64_t images, blocks;
  int inputs;
  int bf16;           // factors, else float32
  int first, last;    // whether these are the first inputs (sums begin with the bias), or the last
  const float* bias;  // [block][16]
  float* sums;        // of other inputs, [image][block][16]
  int64_t sums_row;
  void* out;  // act(sums) of the last ones, [image][block][16]
  int dtype;  // float32 or bfloat16
  int64_t out_row;
  int act;
  float slope;
};

// One row of pooled outputs of a block; rows and columns outside the map do not count.
struct PoolArgs {
  const float* const* rows;  // of the window, those inside the map
  int count;
  int64_t width;  // of the map
  int64_t kernel, stride, padding;
  int max;  // else the mean
  int64_t outputs;
  float* out;  // [output][16]
};

// Brings inputs of some images into rows of kLinearRow factors.
struct LinearPack {
  const void* x;
  int dtype;    // float32 or bfloat16
  int64_t row;  // elements from image to image
  int64_t images;
  int inputs;
  int bf16;
  void* out;
};

// One row of an image batch to planar model input, or planar model output to an image row.
struct ImageRowArgs {
  const void* photo;  // one image row, [width][3]
  void* out;          // image row written by image_store
  int is_byte;        // uint8, else float32
  int width, padded;  // image_load also writes columns [width, padded) by `index`
  const int32_t* index;
  float* plane[3];  // R, G, B rows of the model's input or output
  float low, high;  // the model's range
  float strength;
  int preserve_color, bgr;
};

// gram_matrix works on panels: [channel, padded with zeros to a multiple of 4][kGramPositions].
// Blocked ones, for channels that are neighbours: [channel / 16][position][16], or pairs of
// positions; from block to block kGramBlock.
constexpr int kGramPositions = 512;
constexpr int64_t kGramBlock = (kGramPositions + 1) * kBlock;
constexpr int kGramFill = 32;  // positions are filled up with zeros to a multiple of this
constexpr int kGramTile = 4;   // channels on each side of a tile of the result

// Loads `count` positions of `channels` channels into a panel, as floats (or as the instruction
// set's multiplication wants them). One of the strides is 1.
struct GramPackArgs {
  const void* data;
  int dtype;                  // DType
  int64_t channel, position;  // strides in elements
  int64_t channels;
  int count;
  int blocked;  // the panel; channel is 1
  float* panel;
};

// Adds a panel's products of channels to tiles of double sums: [tile][4][4], the tiles (i, j <= i)
// of the lower triangle in rows. Rows [first, last) of tiles.
struct GramTileArgs {
  const float* panel;
  int dtype;    // what the panel was loaded from
  int blocked;  // the panel; `first` is a multiple of 4 then
  int count;    // positions, if not blocked a multiple of kGramFill
  int64_t first, last;
  double* sums;
  // What the next panel will load, brought into a cache meanwhile: rows of whole lines.
  const char* next;
  int64_t next_rows, next_row, next_lines;  // rows, bytes from row to row, lines in a row
};

// dst[r*dst_row + c] = src[r*src_row + c*src_col] of elements of `size` bytes (2 or 4).
struct MoveArgs {
  const void* src;
  void* dst;
  int64_t rows, cols, src_row, src_col, dst_row;
  int size;
  bool stream;  // past the caches: the result is larger than they are
};

// dst[r] = a[r*a_row ...] followed by b[r*b_row ...]: rows of bytes, side by side.
struct JoinArgs {
  const char *a, *b;
  char* dst;
  int64_t rows, a_row, b_row, a_bytes, b_bytes;
  bool stream;
};

constexpr int kHalvesPixels = 24;

struct Kernels {
  const char* name;
  int nb;            // most channel blocks of one register tile
  int pixels[3];     // most pixels of a register tile for 1 and 2 blocks (index = blocks)
  int small_pixels;  // pixels of one call of `small` that fill the registers
  void (*pack)(const PackArgs&);
  void (*micro)(const MicroArgs&, int pixels, int nb);
  void (*micro_bf16)(const MicroArgs&, int pixels, int nb);
  void (*finish)(const FinishArgs&);
  void (*small)(const SmallArgs&);
  void (*small_bf16)(const SmallArgs&);
  void (*rows)(const RowsArgs&);
  void (*winograd_input)(const WinogradInput&);
  void (*winograd_output)(const WinogradOutput&);
  void (*lines_input)(const LinesInput&);
  void (*lines_output)(const LinesOutput&);
  // Statistics as in FinishArgs of `count` pixels, 16 channels at a time.
  void (*moments)(const float* x, int64_t count, float* stats);
  // One output row of a depthwise convolution, 16 channels.
  void (*depthwise)(const float* panel, int64_t panel_row, int pixel, const float* weights,
                    const float* bias, int kh, int kw, int pixels, float* out);
  void (*image_load)(const ImageRowArgs&);
  void (*image_store)(const ImageRowArgs&);
  double (*peak)(int64_t rounds);  // runs multiply-adds; returns their number
  void (*gram_pack)(const GramPackArgs&);
  void (*gram_tiles)(const GramTileArgs&);
  void (*move)(const MoveArgs&);
  void (*join)(const JoinArgs&);
  void (*pack_int8)(const PackArgs&);
  void (*micro_int8)(const MicroArgs&, int pixels, int nb);
  void (*small_int8)(const SmallInt8Args&);
  void (*winograd2_input)(const Winograd2Input&);
  void (*winograd2_output)(const WinogradOutput&);
  void (*linear)(const LinearArgs&);
  void (*linear_pack)(const LinearPack&);
  void (*pool)(const PoolArgs&);
  void (*pool_sum)(const float* x, int64_t count, double* total);
  // Winograd products of at most kHalvesPixels tiles x 8 outputs and what becomes of them; null
  // where vectors are shorter (halves.inl).
  void (*halves)(const MicroArgs&, int pixels) = nullptr;
  void (*halves_bf16)(const MicroArgs&, int pixels) = nullptr;
  void (*halves_finish)(const WinogradOutput&) = nullptr;
};

const Kernels* kernels_scalar();
#ifdef FASTGEN_X86
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512_vnni();
const Kernels* kernels_avx512_bf16();
#endif

}  // namespace fastgen
