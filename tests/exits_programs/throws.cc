// Throws exceptions across its functions, in the ways in which C++ programs do: over many levels,
// caught in the middle, thrown on, nested, out of constructors, carried away and thrown again
// elsewhere, and thrown and caught while another one is on its way. The functions named level_
// count that they were called, and that no exception left them.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using u64 = std::uint64_t;
#define LEVEL extern "C" __attribute__((noinline))

struct Counted { u64 calls, returned; };

namespace {

thread_local Counted counted;
thread_local u64 checksum;

void mix(u64 value) {
  checksum = (checksum ^ value) * 0x9e3779b97f4a7c15ul;
  checksum ^= checksum >> 29;
}

void mix(const std::string &text) { for (char c : text) mix(u64(c)); }

class Here {
  int on_their_way = std::uncaught_exceptions();
public:
  Here() { counted.calls++; }
  ~Here() { counted.returned += std::uncaught_exceptions() <= on_their_way; }
};

struct Error : std::runtime_error {
  u64 code;
  Error(u64 code, const std::string &text) : std::runtime_error(text), code(code) {}
};
struct Severe : Error { using Error::Error; u64 more[8] = {1, 2, 3}; };

struct Shape {
  virtual ~Shape() = default;
  virtual u64 size(u64 n) const = 0;
};

}

LEVEL u64 level_raise(u64 kind) {
  Here here;
  switch (kind % 5) {
    case 0: throw Error(kind, "plain " + std::to_string(kind));
    case 1: throw Severe(kind, "severe");
    case 2: throw kind;
    case 3: return std::vector<u64>(3).at(kind + 3);
    default: throw std::string("text");
  }
}

namespace {

// Fails and recovers while it is destroyed, which may be because of an exception.
struct Careful {
  u64 kind;
  ~Careful() { try { level_raise(kind * 5); } catch (const Error &error) { mix(error.code); } }
};

// Its first member is destroyed when the second cannot be made.
struct Half {
  std::unique_ptr<std::string> whole;
  u64 value;
  explicit Half(u64 kind) : whole(new std::string(40, 'x')), value(level_raise(kind)) {}
};

struct Square : Shape {
  u64 size(u64 n) const override { return n % 4 ? n * n : level_raise(n); }
};

}

LEVEL u64 level_down(u64 depth, u64 kind, double weight, std::string text, u64 a, u64 b, u64 c) {
  Here here;
  std::vector<std::string> held(depth % 4, text);
  if (depth == 0) return level_raise(kind);
  u64 below = level_down(depth - 1, kind, weight * 2, text + "+", c, a, b);
  return below + held.size();
}

LEVEL u64 level_careful(u64 depth, u64 kind) {
  Here here;
  Careful careful{depth};
  return depth ? level_careful(depth - 1, kind) : level_raise(kind);
}

LEVEL u64 level_middle(u64 depth, u64 kind) {
  Here here;
  std::map<u64, std::string> names{{depth, "depth"}, {kind, "kind"}};
  try {
    if (depth == 0) return level_down(kind % 9, kind, 1.5, "a", 1, 2, 3);
    return level_middle(depth - 1, kind) + 1;
  } catch (const Severe &severe) {
    if (depth % 3) throw;
    mix(severe.what());
    return severe.code + severe.more[1];
  } catch (Error &error) {
    error.code++;
    if (depth % 4 == 0) std::throw_with_nested(std::logic_error(names[depth]));
    throw;
  } catch (const std::string &text) {
    if (depth % 2) throw u64(text.size());
    throw;
  }
}

LEVEL u64 level_unwrap(const std::exception &error) {
  Here here;
  mix(error.what());
  try {
    std::rethrow_if_nested(error);
  } catch (const std::exception &inner) {
    return 1 + level_unwrap(inner);
  }
  return 1;
}

LEVEL u64 level_sort(u64 count) {
  Here here;
  std::vector<u64> values(count);
  for (u64 n = 0; n < count; n++) values[n] = n * 7 % 31;
  std::sort(values.begin(), values.end(), [](u64 a, u64 b) {
    if (a == 13 && b == 20) level_raise(0);
    return a < b;
  });
  return values.empty() ? 0 : values[0];
}

LEVEL u64 level_caught(const std::function<u64()> &body) {
  Here here;
  try {
    return body();
  } catch (const std::exception &error) {
    return 100 + level_unwrap(error);
  } catch (u64 number) {
    return 200 + number;
  } catch (...) {
    std::exception_ptr carried = std::current_exception();
    try { std::rethrow_exception(carried); } catch (const std::string &text) { mix(text); }
    return 300;
  }
}

extern "C" u64 run(u64 seed, u64 rounds, Counted *result) {
  counted = {};
  checksum = seed;
  std::unique_ptr<Shape> shape(new Square);
  for (u64 round = 0; round < rounds; round++) {
    u64 kind = seed + round, depth = round % 13;
    mix(level_caught([=] { return level_down(depth * 3, kind, 0.5, "b", 4, 5, 6); }));
    mix(level_caught([=] { return level_middle(depth, kind); }));
    mix(level_caught([=] { return level_careful(depth, kind); }));
    mix(level_caught([=] { return Half(kind).value; }));
    mix(level_caught([&] { return shape->size(kind); }));
    mix(level_caught([=] { return level_sort(kind % 40); }));
  }
  *result = counted;
  return checksum;
}
