# Symbols without what differs from build to build; with keep=1, the symbol itself after each.
{
  plain = $1
  sub(/(\.[0-9]+|\.llvm\.[0-9]+)+$/, "", plain)   # a local function's number
  sub(/17h[0-9a-f]+E$/, "", plain)                # Rust's older names end with a hash
  if (plain ~ /^_R/) gsub(/Cs[0-9A-Za-z]+_/, "Cs_", plain)   # its newer ones have one for each crate
  sub(/^aws_lc_[0-9]+_[0-9]+_[0-9]+_/, "aws_lc_", plain)
  print keep ? plain " " $1 : plain
}
