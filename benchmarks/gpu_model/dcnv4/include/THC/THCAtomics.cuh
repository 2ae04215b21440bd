#include "../ATen/ATen.h"
