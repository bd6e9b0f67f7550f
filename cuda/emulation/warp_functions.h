// Shuffles, votes and __syncwarp: the lanes of a warp exchange values without shared memory.
//
// Stricter than hardware in one point: every lane that a shuffle's mask names must take part. To
// hardware a lane that has returned is no obstacle, but what is read from it is undefined; it is
// the bug of `if (i >= n) return;` before a reduction. Votes and __syncwarp pass over such lanes,
// as hardware does.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "cuda/emulation/thread.h"

namespace mutilde::emulation {

struct Shuffle {
  uint64_t value = 0;  // what the lane gives
  int source = 0;      // the lane from which it takes
  uint64_t result = 0;
};

/// A source that does not take part gives an undefined value: all bits set, a NaN as float.
inline void complete_shuffle(unsigned lanes, void* const* payload) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    auto& shuffle = *static_cast<Shuffle*>(payload[lane]);
    const bool given = (lanes >> shuffle.source & 1) != 0;
    shuffle.result =
        given ? static_cast<const Shuffle*>(payload[shuffle.source])->value : ~uint64_t{0};
  }
}

struct Vote {
  bool predicate = false;
  unsigned lanes = 0;   // that voted
  unsigned ballot = 0;  // those of them whose predicate is true
};

inline void complete_vote(unsigned lanes, void* const* payload) {
  unsigned ballot = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((lanes >> lane & 1) && static_cast<const Vote*>(payload[lane])->predicate) {
      ballot |= 1U << lane;
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    static_cast<Vote*>(payload[lane])->lanes = lanes;
    static_cast<Vote*>(payload[lane])->ballot = ballot;
  }
}

inline constexpr WarpCall kShflSync{"__shfl_sync", Lanes::kNamed, complete_shuffle};
inline constexpr WarpCall kShflUpSync{"__shfl_up_sync", Lanes::kNamed, complete_shuffle};
inline constexpr WarpCall kShflDownSync{"__shfl_down_sync", Lanes::kNamed, complete_shuffle};
inline constexpr WarpCall kShflXorSync{"__shfl_xor_sync", Lanes::kNamed, complete_shuffle};
inline constexpr WarpCall kAnySync{"__any_sync", Lanes::kNamedAlive, complete_vote};
inline constexpr WarpCall kAllSync{"__all_sync", Lanes::kNamedAlive, complete_vote};
inline constexpr WarpCall kBallotSync{"__ballot_sync", Lanes::kNamedAlive, complete_vote};
inline constexpr WarpCall kActiveMask{"__activemask", Lanes::kWhoComes, complete_vote};
inline constexpr WarpCall kSyncWarp{"__syncwarp", Lanes::kNamedAlive, nullptr};

/// `source_of(lane, first, last)` with the ends of the lane's segment of `width` lanes.
template <class T, class Source>
T shuffle(const WarpCall& call, unsigned mask, T value, int width, CallSite site,
          const Source& source_of) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Block& block = running_block(call.name);
  if (width < 1 || width > kWarpSize || !std::has_single_bit(static_cast<unsigned>(width))) {
    fail<KernelFault>("{}: {} at {}: width {} is no power of two up to 32", block.where(),
                      call.name, site.to_string(), width);
  }
  const int lane = lane_index(), first = lane & ~(width - 1);
  Shuffle exchange;
  std::memcpy(&exchange.value, &value, sizeof(T));
  exchange.source = source_of(lane, first, first + width - 1);
  block.wait_in_warp(call, mask, &exchange, site);
  std::memcpy(static_cast<void*>(&value), &exchange.result, sizeof(T));
  return value;
}

inline Vote vote(const WarpCall& call, unsigned mask, bool predicate, CallSite site) {
  Vote vote{.predicate = predicate};
  running_block(call.name).wait_in_warp(call, mask, &vote, site);
  return vote;
}

}  // namespace mutilde::emulation

// NOLINTBEGIN(readability-identifier-naming, bugprone-reserved-identifier): CUDA's names.

/// The value of lane `source` of the same segment.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  return mutilde::emulation::shuffle(
      mutilde::emulation::kShflSync, mask, value, width, site,
      [=](int, int first, int) { return first + (source & (width - 1)); });
}

/// The value of the lane `delta` below; the lane's own where there is none in its segment.
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  return mutilde::emulation::shuffle(mutilde::emulation::kShflUpSync, mask, value, width, site,
                                     [=](int lane, int first, int) {
                                       const int source = lane - static_cast<int>(delta & 31);
                                       return source < first ? lane : source;
                                     });
}

/// The value of the lane `delta` above; the lane's own where there is none in its segment.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  return mutilde::emulation::shuffle(mutilde::emulation::kShflDownSync, mask, value, width, site,
                                     [=](int lane, int, int last) {
                                       const int source = lane + static_cast<int>(delta & 31);
                                       return source > last ? lane : source;
                                     });
}

/// The value of lane `lane ^ lane_mask`; the lane's own where that is in a later segment.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  return mutilde::emulation::shuffle(mutilde::emulation::kShflXorSync, mask, value, width, site,
                                     [=](int lane, int, int last) {
                                       const int source = lane ^ (lane_mask & 31);
                                       return source > last ? lane : source;
                                     });
}

inline int __any_sync(unsigned mask, int predicate,
                      mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  return vote(mutilde::emulation::kAnySync, mask, predicate != 0, site).ballot != 0;
}

inline int __all_sync(unsigned mask, int predicate,
                      mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  const auto vote =
      mutilde::emulation::vote(mutilde::emulation::kAllSync, mask, predicate != 0, site);
  return vote.ballot == vote.lanes;
}

inline unsigned __ballot_sync(
    unsigned mask, int predicate,
    mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  return vote(mutilde::emulation::kBallotSync, mask, predicate != 0, site).ballot;
}

/// The lanes that come to this line together: here all that can, on a GPU perhaps fewer.
inline unsigned __activemask(
    mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  return mutilde::emulation::vote(mutilde::emulation::kActiveMask, 0, true, site).lanes;
}

inline void __syncwarp(unsigned mask = 0xffffffff,
                       mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  mutilde::emulation::running_block("__syncwarp")
      .wait_in_warp(mutilde::emulation::kSyncWarp, mask, nullptr, site);
}

// NOLINTEND(readability-identifier-naming, bugprone-reserved-identifier)
