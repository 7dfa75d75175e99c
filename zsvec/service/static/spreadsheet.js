// CSV that is safe to open in a spreadsheet, with the rules of `zsvec/cli/spreadsheet.py`: text that begins like a
// formula gets a leading apostrophe, also after a separator within a value.

const FORMULA = /^["'`,;|\p{C}\p{M}\p{Z}\p{Pi}\p{Pf}]*[=+\-@\u2212]/u;
const SEPARATOR = /(?<=[;\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029])/u; // a cell or a line may begin after each of these
const plain = (text) => Array.from(text, (character) => character.normalize("NFKC")).join("");
const marked = (text) => (!text.startsWith("'") && FORMULA.test(plain(text)) ? `'${text}` : text);

function cell(value) {
  if (typeof value !== "string") return String(value ?? "");
  const safe = marked(value.split(SEPARATOR).map(marked).join(""));
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// Returns lines of CSV: a header, and the columns of each object. Spreadsheets read UTF-8 only after the first character.
export function csv(columns, objects) {
  const rows = [columns, ...objects.map((one) => columns.map((column) => one[column]))];
  return `\ufeff${rows.map((row) => `${row.map(cell).join(",")}\n`).join("")}`;
}
