// Fibers, checks and warp instructions of the emulation; see emulate.h.
#include "emulate.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastgen {
namespace emulate {
namespace {

constexpr int kWarp = 32, kStackBytes = 128 * 1024;
constexpr int kMaxShared = 227 * 1024, kDefaultShared = 48 * 1024;
constexpr int kNobody = -1, kSeveral = -2;

enum State { kReady, kAtBarrier, kInWarp, kDone };

struct Copy {
  int64_t offset;
  unsigned char bytes[16];
};

struct Thread {
  ucontext_t start;
  jmp_buf context;
  std::unique_ptr<unsigned char[]> stack;
  bool started = false;
  State state = kReady;
  int index = 0;
  std::vector<Copy> open;                 // copies of the group that is being filled
  std::vector<std::vector<Copy>> groups;  // committed, not yet waited for
};

struct Lane {
  uint32_t* r;
  const uint32_t *a, *b;
  float* c;
  int64_t offset;
};

struct Warp {
  const char* what = "";
  int arrived = 0;
  Lane lanes[kWarp];
};

// Who touched two bytes of shared memory since which barrier.
struct Granule {
  int write_epoch = -1, read_epoch = -1;
  int16_t writer = kNobody, reader = kNobody;
  bool pending = false;  // an asynchronous copy is on its way here
};

struct Region {
  uint64_t end;
  bool writable;
  std::string name;
};

struct Machine {
  Grid grid;
  Counts counts{};
  std::string kernel, error;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  jmp_buf scheduler;
  std::vector<unsigned char> shared;
  std::vector<Granule> granules;
  int epoch = 0, allowed = kDefaultShared;
  std::map<uint64_t, Region> regions;
  bool capturing = false;
  std::vector<std::function<void()>> captured;
};

Machine& machine() {
  static Machine m;
  return m;
}

std::string here() {
  const Machine& m = machine();
  char text[160];
  std::snprintf(text, sizeof text, " (block %u,%u,%u thread %d)", m.grid.block.x, m.grid.block.y,
                m.grid.block.z, m.current ? m.current->index : -1);
  return text;
}

// Ends the launch from inside a fiber; the fibers' stacks are simply left.
[[noreturn]] void fail(const std::string& what) {
  Machine& m = machine();
  m.error = m.kernel + ": " + what + here();
  _longjmp(m.scheduler, 2);
}

void wait_as(State state) {
  Machine& m = machine();
  m.current->state = state;
  if (_setjmp(m.current->context) == 0) _longjmp(m.scheduler, 1);
}

void fiber() {
  for (;;) {  // one turn for every block
    (*machine().body)();
    wait_as(kDone);
  }
}

// Runs a thread until it waits. False: the kernel failed.
bool resume(Thread& thread) {
  Machine& m = machine();
  m.current = &thread;
  const int from = _setjmp(m.scheduler);
  if (from == 0) {
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    setcontext(&thread.start);
  }
  return from == 1;
}

void run_block() {
  Machine& m = machine();
  m.granules.assign(m.granules.size(), Granule());
  std::fill(m.shared.begin(), m.shared.end(), 0xff);  // NaN in every type
  m.epoch = 0;
  for (auto& warp : m.warps) warp.arrived = 0;
  for (auto& t : m.threads) t->state = kReady;
  for (;;) {
    size_t done = 0, waiting = 0;
    for (auto& t : m.threads) {
      if (t->state == kReady && !resume(*t)) return;
      done += t->state == kDone;
      waiting += t->state == kAtBarrier;
    }
    if (done == m.threads.size()) return;
    bool ready = false;
    for (auto& t : m.threads) ready |= t->state == kReady;
    if (ready) continue;
    if (waiting < m.threads.size()) {
      m.error = m.kernel + ": a barrier is reached by " + std::to_string(waiting) + " of " +
                std::to_string(m.threads.size()) + " threads, and " + std::to_string(done) +
                " have left" + here();
      return;
    }
    ++m.epoch;
    ++m.counts.barriers;
    for (auto& t : m.threads) t->state = kReady;
  }
}

void touch(int64_t offset, int bytes, bool write, int thread) {
  Machine& m = machine();
  const auto at = [&] { return " at shared byte " + std::to_string(offset); };
  for (int64_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
    Granule& g = m.granules[i];
    if (g.pending) fail("access" + at() + ", which a copy that was not waited for fills");
    if (g.write_epoch == m.epoch && g.writer != thread)
      fail("race: threads " + std::to_string(g.writer) + " and " + std::to_string(thread) + at());
    if (write) {
      if (g.read_epoch == m.epoch && g.reader != thread)
        fail("race: a write of thread " + std::to_string(thread) + " and a read" + at());
      g.write_epoch = m.epoch;
      g.writer = static_cast<int16_t>(thread);
    } else {
      if (g.write_epoch < 0) fail("read of what was never written" + at());
      g.reader =
          static_cast<int16_t>(g.read_epoch == m.epoch && g.reader != thread ? kSeveral : thread);
      g.read_epoch = m.epoch;
    }
  }
}

void check_range(int64_t offset, int bytes) {
  const int64_t size = static_cast<int64_t>(machine().shared.size());
  if (offset < 0 || offset + bytes > size)
    fail("shared access of " + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
         " of " + std::to_string(size));
  if (offset % bytes != 0)
    fail("unaligned shared access of " + std::to_string(bytes) + " bytes at " +
         std::to_string(offset));
}

// Gathers a warp's operands; the last lane runs `work` for all.
template <class Work>
void collective(const char* what, const Lane& lane, Work work) {
  Machine& m = machine();
  const int index = m.current->index;
  Warp& warp = m.warps[index / kWarp];
  if (warp.arrived == 0) warp.what = what;
  if (warp.what != what)
    fail(std::string("a warp executes ") + warp.what + " and " + what + " at once");
  warp.lanes[index % kWarp] = lane;
  if (++warp.arrived < kWarp) return wait_as(kInWarp);
  work(warp);
  warp.arrived = 0;
  for (int l = 0; l < kWarp; ++l) m.threads[index / kWarp * kWarp + l]->state = kReady;
}

float operand(const uint32_t word, int part, Operand kind) {
  if (kind == kTf32) {
    const uint32_t bits = word & 0xffffe000;  // what the tensor cores read
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  const uint16_t bits = static_cast<uint16_t>(word >> (16 * part));
  if (kind == kHalf) return half_to_float(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

// PTX manual, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8" (.tf32). Registers of lane l
// with g = l / 4 and q = l % 4:
//   a[e]: row g + 8 (e % 2);  b[e]: column g;  c[e]: row g + 8 (e / 2), column 2 q + e % 2
//   16 bits: a[e] depth 2 q + 8 (e / 2) + {0, 1};  b[e]: 2 q + 8 e + {0, 1}
//   tf32:    a[e] depth q + 4 (e / 2);             b[e]: q + 4 e
// Products are exact and the accumulator drops what does not fit: tensor cores round towards zero,
// so long sums of one sign come out low.
float truncated(double x) {
  const float nearest = static_cast<float>(x);
  const bool away = std::fabs(static_cast<double>(nearest)) > std::fabs(x);
  return away ? std::nextafter(nearest, 0.0f) : nearest;
}

void run_mma(Warp& warp, Operand kind) {
  const int parts = kind == kTf32 ? 1 : 2, depth = 8 * parts;
  float a[16][16], b[16][8];
  for (int l = 0; l < kWarp; ++l) {
    const Lane& lane = warp.lanes[l];
    const int g = l / 4, q = l % 4;
    for (int part = 0; part < parts; ++part) {
      for (int e = 0; e < 4; ++e)
        a[g + 8 * (e % 2)][parts * q + depth / 2 * (e / 2) + part] = operand(lane.a[e], part, kind);
      for (int e = 0; e < 2; ++e)
        b[parts * q + depth / 2 * e + part][g] = operand(lane.b[e], part, kind);
    }
  }
  double product[16][8] = {};
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < 8; ++j) product[i][j] += static_cast<double>(a[i][k]) * b[k][j];
  for (int l = 0; l < kWarp; ++l)
    for (int e = 0; e < 4; ++e) {
      float& c = warp.lanes[l].c[e];
      c = truncated(c + product[l / 4 + 8 * (e / 2)][2 * (l % 4) + e % 2]);
    }
}

// Lane l names row l % 8 of matrix l / 8 and receives, from matrix i, elements 2 (l % 4) + {0, 1}
// of row l / 4 (transposed: of column l / 4).
void run_ldmatrix(Warp& warp, int warp_index, int matrices, bool transposed) {
  Machine& m = machine();
  uint16_t rows[4][8][8];
  for (int l = 0; l < 8 * matrices; ++l) {
    check_range(warp.lanes[l].offset, 16);
    touch(warp.lanes[l].offset, 16, false, warp_index * kWarp + l);
    std::memcpy(rows[l / 8][l % 8], m.shared.data() + warp.lanes[l].offset, 16);
  }
  for (int l = 0; l < kWarp; ++l) {
    for (int i = 0; i < matrices; ++i) {
      const int g = l / 4, q = 2 * (l % 4);
      const uint32_t low = transposed ? rows[i][q][g] : rows[i][g][q];
      const uint32_t high = transposed ? rows[i][q + 1][g] : rows[i][g][q + 1];
      warp.lanes[l].r[i] = low | high << 16;
    }
  }
}

}  // namespace

Grid& grid() { return machine().grid; }
Counts& counts() { return machine().counts; }

dim3 current_thread() { return dim3(machine().current->index, 0, 0); }

void declare(uint64_t address, uint64_t bytes, bool writable, const char* name) {
  machine().regions[address] = {address + bytes, writable, name};
}
void forget_all() { machine().regions.clear(); }
void undeclare(uint64_t address) { machine().regions.erase(address); }

void allow_shared(int bytes) { machine().allowed = bytes; }

void begin_capture() {
  Machine& m = machine();
  if (m.capturing) throw std::runtime_error("a capture has begun already");
  m.capturing = true;
  m.captured.clear();
}

std::function<void()> end_capture() {
  Machine& m = machine();
  m.capturing = false;
  std::vector<std::function<void()>> work;
  work.swap(m.captured);
  return [work] {
    for (const auto& each : work) each();
  };
}

void submit(const std::function<void()>& work) {
  Machine& m = machine();
  if (m.capturing)
    m.captured.push_back(work);
  else
    work();
}

void launch(const char* name, dim3 blocks, dim3 threads, int64_t shared_bytes,
            const std::function<void()>& kernel) {
  Machine& m = machine();
  if (m.capturing) {
    const int allowed = m.allowed;
    m.allowed = kDefaultShared;
    m.captured.push_back([=] {
      machine().allowed = allowed;
      launch(name, blocks, threads, shared_bytes, kernel);
    });
    return;
  }
  m.kernel = name;
  m.error.clear();
  const int allowed = m.allowed;
  m.allowed = kDefaultShared;
  const auto refuse = [&](const std::string& what) { throw std::runtime_error(m.kernel + what); };
  if (shared_bytes > allowed || shared_bytes > kMaxShared)
    refuse(": shared memory of " + std::to_string(shared_bytes) + " bytes was not asked for");
  if (threads.x % kWarp != 0 || threads.x > 1024 || threads.y != 1 || threads.z != 1)
    refuse(": a block must have whole warps in x");
  if (blocks.x < 1 || blocks.x > 0x7fffffff || blocks.y < 1 || blocks.y > 65535 || blocks.z < 1 ||
      blocks.z > 65535)
    refuse(": the grid is outside the limits");
  m.grid.blocks = blocks;
  m.grid.threads = threads;
  m.body = &kernel;
  m.shared.resize(shared_bytes);
  m.granules.resize((shared_bytes + 1) / 2);
  m.warps.resize(threads.x / kWarp);
  std::vector<std::unique_ptr<Thread>> fibers(threads.x);
  for (unsigned i = 0; i < threads.x; ++i) {
    fibers[i] = std::make_unique<Thread>();
    fibers[i]->index = static_cast<int>(i);
    fibers[i]->stack.reset(new unsigned char[kStackBytes]);
    getcontext(&fibers[i]->start);
    fibers[i]->start.uc_stack.ss_sp = fibers[i]->stack.get();
    fibers[i]->start.uc_stack.ss_size = kStackBytes;
    fibers[i]->start.uc_link = nullptr;
    makecontext(&fibers[i]->start, fiber, 0);
  }
  m.threads.swap(fibers);
  ++m.counts.launches;
  for (unsigned z = 0; z < blocks.z && m.error.empty(); ++z)
    for (unsigned y = 0; y < blocks.y && m.error.empty(); ++y)
      for (unsigned x = 0; x < blocks.x && m.error.empty(); ++x) {
        m.grid.block = dim3(x, y, z);
        ++m.counts.blocks;
        run_block();
      }
  m.threads.clear();
  m.current = nullptr;
  if (!m.error.empty()) throw std::runtime_error(m.error);
}

void check_global(const void* address, int bytes, int alignment, bool write) {
  Machine& m = machine();
  const auto at = reinterpret_cast<uint64_t>(address);
  const auto what = [&] {
    return std::string(write ? "write" : "read") + " of " + std::to_string(bytes) + " bytes at " +
           std::to_string(at);
  };
  auto region = m.regions.upper_bound(at);
  if (region == m.regions.begin()) fail("global " + what() + " is below every buffer");
  --region;
  if (at + bytes > region->second.end)
    fail("global " + what() + " is " + std::to_string(at - region->first) + " bytes into '" +
         region->second.name + "' of " + std::to_string(region->second.end - region->first));
  if (write && !region->second.writable)
    fail("global " + what() + " is in '" + region->second.name + "', an input");
  if (at % alignment != 0)
    fail("global " + what() + " in '" + region->second.name + "' is unaligned");
}

unsigned char* check_shared(int64_t offset, int bytes, bool write) {
  check_range(offset, bytes);
  touch(offset, bytes, write, machine().current->index);
  return machine().shared.data() + offset;
}

void barrier() { wait_as(kAtBarrier); }

void cp_async16(int64_t offset, const void* from, bool valid) {
  Machine& m = machine();
  ++m.counts.cp_async;
  check_range(offset, 16);
  touch(offset, 16, true, m.current->index);
  Copy copy{offset, {}};
  if (reinterpret_cast<uint64_t>(from) % 16 != 0) fail("cp.async from an unaligned address");
  if (valid) {
    check_global(from, 16, 16, false);
    std::memcpy(copy.bytes, from, 16);
  }
  for (int64_t i = offset / 2; i < offset / 2 + 8; ++i) m.granules[i].pending = true;
  std::memset(m.shared.data() + offset, 0xff, 16);
  m.current->open.push_back(copy);
}

void cp_async_commit() {
  Thread& t = *machine().current;
  t.groups.push_back(std::move(t.open));
  t.open.clear();
}

void cp_async_wait(int pending) {
  Machine& m = machine();
  auto& groups = m.current->groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy& copy : groups.front()) {
      for (int64_t i = copy.offset / 2; i < copy.offset / 2 + 8; ++i) m.granules[i].pending = false;
      touch(copy.offset, 16, true, m.current->index);
      std::memcpy(m.shared.data() + copy.offset, copy.bytes, 16);
    }
    groups.erase(groups.begin());
  }
}

void ldmatrix(uint32_t* r, int64_t offset, int matrices, bool transposed) {
  const char* what = transposed      ? "ldmatrix.x4.trans"
                     : matrices == 4 ? "ldmatrix.x4"
                                     : "ldmatrix.x2";
  const int index = machine().current->index / kWarp;
  collective(what, {r, nullptr, nullptr, nullptr, offset}, [&](Warp& warp) {
    ++machine().counts.ldmatrix;
    run_ldmatrix(warp, index, matrices, transposed);
  });
}

void mma(float* c, const uint32_t* a, const uint32_t* b, Operand kind) {
  static const char* const kNames[] = {"mma.f16", "mma.bf16", "mma.tf32"};
  collective(kNames[kind], {nullptr, a, b, c, 0}, [&](Warp& warp) {
    ++machine().counts.mma;
    run_mma(warp, kind);
  });
}

namespace {
float slow_half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float x = exponent == 31 ? (mantissa ? NAN : INFINITY)
            : exponent     ? std::ldexp(1024.0f + mantissa, exponent - 25)
                           : std::ldexp(static_cast<float>(mantissa), -24);
  return bits >> 15 ? -x : x;
}
}  // namespace

float half_to_float(uint16_t bits) {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (int i = 0; i < 65536; ++i) values[i] = slow_half_to_float(static_cast<uint16_t>(i));
    return values;
  }();
  return table[bits];
}

uint16_t float_to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7fff;
  const float size = std::fabs(x);
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent;
  std::frexp(size, &exponent);  // size = f * 2^exponent, f in [0.5, 1)
  // Multiples of 2^-shift are the values; below 2^-14 they are subnormal.
  const int shift = size == 0 || exponent < -13 ? 24 : 11 - exponent;
  const float scaled = std::nearbyint(std::ldexp(size, shift));
  if (shift == 24) return sign | static_cast<uint16_t>(scaled);
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + static_cast<int>(scaled));
}

}  // namespace emulate
}  // namespace fastgen
