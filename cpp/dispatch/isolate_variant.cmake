# Makes the objects of a variant, merged into one file, safe to link beside those of other variants: all symbols become
# local but for the public functions, which get the variant's prefix. Without that the linker would take one of the
# copies of each inline function and template (std::vector's, say) for the whole program, possibly one with
# instructions that the machine lacks.
#
#   cmake -DMERGED=in.o -DISOLATED=out.o -DPREFIX=avx2_ -DPUBLIC=regex -DHIDDEN=regex -DNM= -DOBJCOPY= -DOBJDUMP=
#         -DFUNCTIONS=list.txt -P isolate_variant.cmake
#
# Public functions are those whose symbols match PUBLIC and not HIDDEN; their names are written to FUNCTIONS.

function(run output)
    execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
    set(${output} "${text}" PARENT_SCOPE)
endfunction()

# defined symbols that other objects see, as "name T"
function(global_symbols file output)
    run(text "${NM}" --format=posix --extern-only --defined-only "${file}")
    string(REGEX MATCHALL "[^\n]+" lines "${text}")
    list(TRANSFORM lines REPLACE "^([^ ]+) (.).*" "\\1 \\2")
    list(SORT lines)
    set(${output} "${lines}" PARENT_SCOPE)
endfunction()

global_symbols("${MERGED}" functions)
# weak ones (W) are inline: whoever includes the header has its own
list(FILTER functions INCLUDE REGEX "^(${PUBLIC})[^ ]* T$")
if(HIDDEN)
    list(FILTER functions EXCLUDE REGEX "^(${HIDDEN})")
endif()
list(TRANSFORM functions REPLACE " T$" "")
list(JOIN functions "\n" names)
file(WRITE "${FUNCTIONS}" "${names}\n")
list(TRANSFORM functions REPLACE "(.+)" "\\1 ${PREFIX}\\1" OUTPUT_VARIABLE renamed)
list(JOIN renamed "\n" renamed)
file(WRITE "${ISOLATED}.renamed" "${renamed}\n")
run(ignored "${OBJCOPY}" --keep-global-symbols=${FUNCTIONS} "${MERGED}" "${ISOLATED}")
run(ignored "${OBJCOPY}" --redefine-syms=${ISOLATED}.renamed "${ISOLATED}")

global_symbols("${ISOLATED}" left)
list(FILTER left EXCLUDE REGEX "^${PREFIX}.* T$")
if(left)
    message(FATAL_ERROR "${ISOLATED}: symbols that other objects would see: ${left}")
endif()
run(sections "${OBJDUMP}" -h "${ISOLATED}")
if(sections MATCHES "\\.(init_array|ctors)")
    message(FATAL_ERROR "${ISOLATED}: code that runs at the program's start, on every machine: give no variable of "
        "namespace scope a value that is computed at run time")
endif()
