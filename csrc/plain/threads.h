// Threads of one call, where there are none of torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace danet {

// body(begin, end) for parts of [0, count), each in a thread; the caller's takes the first, and those for which the
// system has no thread.
template <typename Body>
void share(int64_t count, int threads, const Body& body) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count));
  std::vector<std::thread> others;
  others.reserve(size_t(parts));
  int64_t part = 1;
  try {
    for (; part < parts; ++part)
      others.emplace_back(
          [&body, first = count * part / parts, last = count * (part + 1) / parts] { body(first, last); });
  } catch (const std::system_error&) {}
  const int64_t left = part;
  body(0, count / parts);
  for (part = left; part < parts; ++part) body(count * part / parts, count * (part + 1) / parts);
  for (std::thread& other : others) other.join();
}

}  // namespace danet
