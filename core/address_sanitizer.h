// Is this compiled with the address sanitizer? g++ and clang each have their own way to say it.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define MUTILDE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MUTILDE_ASAN 1
#endif
#endif

namespace mutilde {

#ifdef MUTILDE_ASAN
inline constexpr bool kAsan = true;
#else
inline constexpr bool kAsan = false;
#endif

}  // namespace mutilde
