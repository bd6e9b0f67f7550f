// Prints how much of the image's variance is left at a few steps of the cosine schedule.
#include <cstdio>

#include "diffusion/schedule.h"

int main() {
  const mutilde::Schedule schedule(mutilde::cosine_beta_schedule(1000));
  for (const int t : {0, 250, 500, 750, 999}) {
    std::printf("alpha_bar[%d] = %.6f\n", t, schedule.alpha_bar.data<double>()[t]);
  }
  return 0;
}
