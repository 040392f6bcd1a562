# Writes cpu_variant_lists.h, the lists that cpu_variants.cpp is built from.
#
#   cmake -DOUTPUT=file -DVARIANTS=name,name,... -DPREFIXES=prefix,prefix,... -DFUNCTIONS=list,list,...
#         -P list_variants.cmake
#
# FUNCTIONS: what isolate_variant.cmake wrote for each variant; they have to be the same.

string(REPLACE "," ";" names "${VARIANTS}")
string(REPLACE "," ";" prefixes "${PREFIXES}")
string(REPLACE "," ";" files "${FUNCTIONS}")

set(text "// Made by list_variants.cmake.\n#define GGTUNE_VARIANTS(X)")
foreach(prefix name IN ZIP_LISTS prefixes names)
    string(APPEND text " \\\n    X(${prefix}, \"${name}\")")
endforeach()
list(GET files 0 first)
file(STRINGS "${first}" functions)
foreach(file IN LISTS files)
    file(STRINGS "${file}" others)
    if(NOT others STREQUAL functions)
        message(FATAL_ERROR "${first} and ${file} differ: a variant lacks public functions that another has")
    endif()
endforeach()
string(APPEND text "\n#define GGTUNE_FUNCTIONS(X, ...)")
foreach(function IN LISTS functions)
    string(APPEND text " \\\n    X(${function}, __VA_ARGS__)")
endforeach()
file(WRITE "${OUTPUT}" "${text}\n")
