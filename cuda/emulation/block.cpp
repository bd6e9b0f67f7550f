#include "cuda/emulation/block.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "cuda/emulation/memory.h"
#include "cuda/emulation/options.h"
#include "cuda/emulation/thread.h"

namespace mutilde::emulation {
namespace {

constinit thread_local Block* block_of_this_host_thread = nullptr;

}  // namespace

Block* Block::running() { return block_of_this_host_thread; }

void Block::Free::operator()(void* data) const { release(data); }

void Block::run(const Launch& launch, uint3 index) {
  launch_ = &launch;
  index_ = index;
  ++number_;
  reverse_ = options().order == Order::kReverse;
  threads_.assign(size_t{launch.block.x} * launch.block.y * launch.block.z, Thread{});
  shared_.reset(allocate(launch.shared_bytes));  // fresh, for valgrind and for the NaNs
  gridDim = launch.grid;
  blockDim = launch.block;
  blockIdx = index;
  block_of_this_host_thread = this;
  try {
    run_threads();
  } catch (...) {
    // The other threads are left where they stopped; their stacks go.
    idle_fibers_.clear();
    fibers_.clear();
    shared_.reset();
    block_of_this_host_thread = nullptr;
    throw;
  }
  shared_.reset();
  block_of_this_host_thread = nullptr;
}

void Block::run_threads() {
  const int threads = static_cast<int>(threads_.size());
  const int warps = (threads + kWarpSize - 1) / kWarpSize;
  do {
    for (int i = 0; i < warps; ++i) run_warp(in_order(i, warps) * kWarpSize);
  } while (release_conditions() || release_barrier());
}

void Block::run_warp(int first) {
  warp_first_ = first;
  warp_size_ = std::min(kWarpSize, static_cast<int>(threads_.size()) - first);
  // All of a warp's threads have started when it first stops.
  started_ = threads_[first].state == State::kNotStarted ? 0 : warp_size_;
  do {
    for (int i = 0; i < warp_size_; ++i) resume_or_start(first + in_order(i, warp_size_));
  } while (complete_warp_calls());
}

void Block::resume_or_start(int thread) {
  if (threads_[thread].state == State::kNotStarted) {
    if (idle_fibers_.empty()) {
      idle_fibers_.push_back(
          fibers_.emplace_back(std::make_unique<Fiber>(&start_threads, this)).get());
    }
    fiber_ = idle_fibers_.back();
    idle_fibers_.pop_back();
  } else if (threads_[thread].state == State::kReady) {
    select(thread);
    fiber_ = threads_[thread].fiber;
  } else {
    return;
  }
  fiber_->resume();
  if (fault_) std::rethrow_exception(std::exchange(fault_, nullptr));
}

/// What a fiber does: it runs the warp's threads one after another. Only when one of them waits,
/// and takes the fiber with it, does the next thread begin on another.
void Block::start_threads(void* block_pointer) {
  auto& block = *static_cast<Block*>(block_pointer);
  for (;;) {
    while (block.started_ < block.warp_size_ && !block.fault_) block.start_next_thread();
    Fiber* fiber = block.fiber_;
    block.idle_fibers_.push_back(fiber);
    fiber->yield();
  }
}

void Block::start_next_thread() {
  const int thread = warp_first_ + in_order(started_++, warp_size_);
  select(thread);
  threads_[thread].state = State::kReady;
  threads_[thread].fiber = fiber_;
  try {
    launch_->run_thread(launch_->arguments);
  } catch (...) {
    fault_ = std::current_exception();  // an exception cannot leave a fiber: resume() throws it
  }
  threads_[thread].state = State::kReturned;
  threads_[thread].fiber = nullptr;
}

void Block::wait(State state, CallSite site) {
  Thread& thread = threads_[current_];
  thread.state = state;
  thread.site = site;
  thread.fiber->yield();
}

void Block::wait_at_barrier(CallSite site) { wait(State::kAtBarrier, site); }

void Block::wait_in_warp(const WarpCall& call, unsigned mask, void* payload, CallSite site) {
  Thread& thread = threads_[current_];
  thread.call = &call;
  thread.mask = mask;
  thread.payload = payload;
  if (call.lanes != Lanes::kWhoComes && (mask >> (current_ % kWarpSize) & 1) == 0) {
    fail<KernelFault>("{}: {}(mask {:#010x}) at {}: the mask does not name the calling lane {}",
                      where(), call.name, mask, site.to_string(), current_ % kWarpSize);
  }
  wait(State::kInWarpCall, site);
}

void Block::wait_until(bool (*ready)(const void*, unsigned), const void* about, unsigned argument,
                       const char* call, CallSite site) {
  if (ready(about, argument)) return;
  Thread& thread = threads_[current_];
  thread.ready = ready;
  thread.about = about;
  thread.argument = argument;
  thread.condition = call;
  wait(State::kUntil, site);
}

bool Block::release_conditions() {
  bool released = false;
  for (Thread& thread : threads_) {
    if (thread.state != State::kUntil || !thread.ready(thread.about, thread.argument)) continue;
    thread.state = State::kReady;
    released = true;
  }
  return released;
}

/// Every thread of the block must come to a barrier, and to the same one. Hardware counts arrivals,
/// so that two barriers in two branches pass for one, and on recent GPUs threads that have returned
/// are not waited for. The programming guide allows neither.
bool Block::release_barrier() {
  const auto waits = [](const Thread& thread) { return thread.state == State::kAtBarrier; };
  const auto first = std::find_if(threads_.begin(), threads_.end(), waits);
  if (first == threads_.end()) {
    for (int thread = 0; thread < static_cast<int>(threads_.size()); ++thread) {
      if (threads_[thread].state != State::kReturned) fail_waiting(thread, "what does not come");
    }
    return false;
  }
  const auto absent = std::find_if(threads_.begin(), threads_.end(), [&](const Thread& thread) {
    return !waits(thread) || thread.site != first->site;
  });
  if (absent != threads_.end()) {
    const int thread = static_cast<int>(absent - threads_.begin());
    fail_waiting(
        static_cast<int>(first - threads_.begin()),
        fmt::format("thread {}, which {}", to_string(thread_index(thread)), what_it_does(thread)));
  }
  for (Thread& thread : threads_) thread.state = State::kReady;
  return true;
}

unsigned Block::lanes_with(State state) const {
  unsigned lanes = 0;
  for (int lane = 0; lane < warp_size_; ++lane) {
    if (threads_[warp_first_ + lane].state == state) lanes |= 1U << lane;
  }
  return lanes;
}

/// The lanes that wait in the same call with the same mask as this one.
unsigned Block::same_call(int lane) const {
  const Thread& one = threads_[warp_first_ + lane];
  unsigned lanes = 0;
  for (int i = 0; i < warp_size_; ++i) {
    const Thread& other = threads_[warp_first_ + i];
    if (other.state == State::kInWarpCall && other.call == one.call && other.mask == one.mask &&
        (one.call->lanes != Lanes::kWhoComes || other.site == one.site)) {
      lanes |= 1U << i;
    }
  }
  return lanes;
}

/// True if some lanes can go on. Throws if lanes wait and none can. (Where it is whoever comes, the
/// mask is 0 and nobody is wanted.)
bool Block::complete_warp_calls() {
  const unsigned waiting = lanes_with(State::kInWarpCall);
  const unsigned present = ~0U >> (kWarpSize - warp_size_);
  const unsigned alive = present & ~lanes_with(State::kReturned);
  bool completed = false;
  for (unsigned rest = waiting; rest != 0;) {
    const int lane = std::countr_zero(rest);
    const Thread& one = threads_[warp_first_ + lane];
    const unsigned come = same_call(lane);
    rest &= ~come;
    const unsigned wanted = one.call->lanes == Lanes::kNamed ? one.mask : one.mask & alive;
    if ((wanted & ~come) != 0) continue;
    void* payload[kWarpSize] = {};
    for (int i = 0; i < warp_size_; ++i) payload[i] = threads_[warp_first_ + i].payload;
    if (one.call->complete != nullptr) one.call->complete(come, payload);
    for (int i = 0; i < warp_size_; ++i) {
      if (come >> i & 1) threads_[warp_first_ + i].state = State::kReady;
    }
    completed = true;
  }
  if (completed || waiting == 0) return completed;

  const int lane = std::countr_zero(waiting);
  const Thread& one = threads_[warp_first_ + lane];
  const unsigned wanted = one.call->lanes == Lanes::kNamed ? one.mask : one.mask & alive;
  const int absent = std::countr_zero(wanted & ~same_call(lane));
  const int thread = warp_first_ + absent;
  if (absent < warp_size_ && threads_[thread].state == State::kUntil) return false;  // it may come
  fail_waiting(warp_first_ + lane,
               absent >= warp_size_
                   ? fmt::format("lane {}, which the block does not have", absent)
                   : fmt::format("lane {} (thread {}), which {}", absent,
                                 to_string(thread_index(thread)), what_it_does(thread)));
}

void Block::fail_waiting(int thread, const std::string& for_whom) const {
  std::string doing = what_it_does(thread);
  fail<KernelFault>("{}: {} for {}", where(thread), doing, for_whom);
}

std::string Block::what_it_does(int thread) const {
  const Thread& one = threads_[thread];
  switch (one.state) {
    case State::kReturned:
      return "has returned";
    case State::kAtBarrier:
      return fmt::format("waits at __syncthreads(), {},", one.site.to_string());
    case State::kInWarpCall:
      return fmt::format("waits in {}(mask {:#010x}), {},", one.call->name, one.mask,
                         one.site.to_string());
    case State::kUntil:
      return fmt::format("waits in {}, {},", one.condition, one.site.to_string());
    default:
      return "is running";
  }
}

void Block::select(int thread) {
  current_ = thread;
  threadIdx = thread_index(thread);
}

int Block::in_order(int i, int count) const { return reverse_ ? count - 1 - i : i; }

uint3 Block::thread_index(int thread) const {
  const auto i = static_cast<unsigned>(thread);
  const dim3 size = launch_->block;
  return {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

std::string Block::where() const { return where(current_); }

std::string Block::where(int thread) const {
  return fmt::format("{}: block {}, thread {}", launch_->kernel, to_string(index_),
                     to_string(thread_index(thread)));
}

Block& running_block(const char* call) {
  if (block_of_this_host_thread == nullptr) fail<Error>("{}: called outside of a kernel", call);
  return *block_of_this_host_thread;
}

std::string to_string(uint3 index) { return fmt::format("({},{},{})", index.x, index.y, index.z); }

std::string CallSite::to_string() const {
  const std::string_view path = file;
  return fmt::format("{}:{}", path.substr(path.rfind('/') + 1), line);
}

}  // namespace mutilde::emulation
