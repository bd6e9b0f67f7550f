// Respacing: a process of fewer steps that passes through the same distributions (Improved DDPM,
// section 4). A network trained on the long process serves the short one as it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "diffusion/gaussian_diffusion.h"

namespace mutilde {

/// Which steps of a process of T steps to keep, ascending.
///   "250"       250 steps, evenly spaced, with the first and the last
///   "10,15,20"  the process in three equal sections, each with so many steps
///   "ddim50"    steps 0, s, 2s, ... for the smallest whole stride s that gives 50
/// Throws Error for anything else, for a count below 1, for more steps than a section has, and
/// where no stride gives the count.
std::vector<int64_t> space_timesteps(int64_t T, const std::string& spec);
/// The same, from the counts of the sections.
std::vector<int64_t> space_timesteps(int64_t T, const std::vector<int64_t>& section_counts);

/// Eq. 19: betas of the steps kept, such that alpha_bar stays what it was at each of them.
std::vector<double> respaced_betas(const std::vector<double>& betas,
                                   const std::vector<int64_t>& use_timesteps);

/// The process that consists of `use_timesteps` (ascending) of the one with `betas`;
/// the network still sees the original timesteps. Throws Error if there is none,
/// or one is not a step of the process.
class SpacedDiffusion : public GaussianDiffusion {
 public:
  SpacedDiffusion(const std::vector<double>& betas, const std::vector<int64_t>& use_timesteps,
                  const DiffusionConfig& config = {});
};

}  // namespace mutilde
