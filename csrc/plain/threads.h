// Threads that live as long as one call, for the C++ library.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace danet {

// Runs body(begin, end) for `threads` parts of [0, count), each on its own thread. The calling thread runs the first
// part, and all parts for which the system refuses a new thread.
template <typename Body>
void run_on_threads(int64_t count, int threads, const Body& body) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count));
  std::vector<std::thread> others;
  others.reserve(size_t(parts));
  int64_t part = 1;
  try {
    for (; part < parts; ++part)
      others.emplace_back(
          [&body, first = count * part / parts, last = count * (part + 1) / parts] { body(first, last); });
  } catch (const std::system_error&) {}
  const int64_t refused = part;
  body(0, count / parts);
  for (part = refused; part < parts; ++part) body(count * part / parts, count * (part + 1) / parts);
  for (std::thread& other : others) other.join();
}

}  // namespace danet
