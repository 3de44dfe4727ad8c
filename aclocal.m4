dnl The macros of configure.ac, written by hand. Since this file was not made by aclocal,
dnl autoreconf leaves it alone and needs no automake.

dnl DAC_TRY_FLAG(VARIABLE, FLAG): adds the flag where compiler and linker take it.
AC_DEFUN([DAC_TRY_FLAG], [
    dac_saved_cflags=$CFLAGS
    CFLAGS="$CFLAGS -Werror $2"
    AC_MSG_CHECKING([whether $CC takes $2])
    AC_LINK_IFELSE([AC_LANG_SOURCE([@%:@include <stdlib.h>
int main(void) { return 0; }])],
        [AC_MSG_RESULT([yes]); $1="$$1 $2"], [AC_MSG_RESULT([no])])
    CFLAGS=$dac_saved_cflags])

dnl DAC_LIB(VARIABLE, PKG-CONFIG NAME, MINIMUM, DEBIAN PACKAGE). All that are missing are
dnl reported, one line each, and remembered in dac_missing.
AC_DEFUN([DAC_LIB], [
    AC_MSG_CHECKING([for $2 >= $3])
    AS_IF([$PKG_CONFIG --atleast-version=$3 $2 2>/dev/null],
        [$1_CFLAGS=`$PKG_CONFIG --cflags $2`
         $1_LIBS=`$PKG_CONFIG --libs $2`
         dac_found=`$PKG_CONFIG --modversion $2`
         AC_MSG_RESULT([$dac_found])],
        [AC_MSG_RESULT([no])
         dac_found=`$PKG_CONFIG --modversion $2 2>/dev/null` || dac_found=
         AS_IF([test -n "$dac_found"], [dac_found="found $dac_found"], [dac_found=missing])
         AS_ECHO(["configure: $2 >= $3 is needed ($dac_found): apt-get install $4"]) >&2
         dac_missing="$dac_missing $4"])
    AC_SUBST([$1_CFLAGS])
    AC_SUBST([$1_LIBS])])
