// The options that sdc, dcnv3, dcnv4 and their backward operators take after their tensors, in the order of their
// schemas. library.cpp builds the schemas from this list, and sdc_torch.h the functions. A new option also needs a
// member of struct SdcOptions (include/danet/sdc_options.h).
#pragma once

// OPTION(C++ type, schema type, name in the schema, member of SdcOptions). Each pair is two integer arguments, because
// a list argument makes every call more than a microsecond slower.
#define DANET_SDC_OPTIONS(OPTION) \
  OPTION(int64_t, int, groups, groups) \
  OPTION(int64_t, int, kernel_h, kernel_size[0]) \
  OPTION(int64_t, int, kernel_w, kernel_size[1]) \
  OPTION(int64_t, int, stride_h, stride[0]) \
  OPTION(int64_t, int, stride_w, stride[1]) \
  OPTION(int64_t, int, padding_h, padding[0]) \
  OPTION(int64_t, int, padding_w, padding[1]) \
  OPTION(int64_t, int, dilation_h, dilation[0]) \
  OPTION(int64_t, int, dilation_w, dilation[1]) \
  OPTION(double, float, offset_scale, offset_scale) \
  OPTION(bool, bool, softmax, softmax) \
  OPTION(bool, bool, remove_center, remove_center)

// Each of these begins with a comma, to follow a tensor.
#define DANET_SDC_SCHEMA DANET_SDC_OPTIONS(DANET_SDC_SCHEMA_OF)          // ", int groups, int kernel_h, ..."
#define DANET_SDC_PARAMETERS DANET_SDC_OPTIONS(DANET_SDC_PARAMETER_OF)  // , int64_t groups, int64_t kernel_h, ...
#define DANET_SDC_ARGUMENTS DANET_SDC_OPTIONS(DANET_SDC_ARGUMENT_OF)    // , groups, kernel_h, ...

#define DANET_SDC_SCHEMA_OF(type, schema_type, name, member) ", " #schema_type " " #name
#define DANET_SDC_PARAMETER_OF(type, schema_type, name, member) , type name
#define DANET_SDC_ARGUMENT_OF(type, schema_type, name, member) , name
