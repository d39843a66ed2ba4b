// What crosses the border between C++ and Rust: a null pointer for success, or the text of what
// went wrong, which the caller frees with `rlhf_free`. No exception leaves C++.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>

namespace rlhf {

template <typename Body>
char* guarded(Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of unknown type");
  }
}

}  // namespace rlhf
