/**
 * Removes comments from code before CodeBLEU looks at its structure, in its two ways: with Python's tokens, which takes
 * docstrings away too, and by one pattern for languages of C's family. Lines that are left blank go too.
 */
import { strip } from './white-space.ts';

const withoutBlankLines = (code: string) =>
  code
    .split('\n')
    .filter((line) => strip(line) !== '')
    .join('\n');

const COMMENT_OR_STRING = /\/\/[^\n]*|\/\*.*?\*\/|'(?:\\.|[^\\'])*'|"(?:\\.|[^\\"])*"/gs;

/** `//` to the end of the line, and what stands between slash and star; each becomes a space. */
export const withoutSlashComments = (code: string): string =>
  withoutBlankLines(code.replace(COMMENT_OR_STRING, (found) => (found.startsWith('/') ? ' ' : found)));

/**
 * Comments, and strings that begin a block or follow the end of a statement. Code that has no tokens, because a bracket
 * or a string is not closed or a line is indented as no line before it, stays as it is. Lines that a backslash joins
 * become one.
 */
export function withoutPythonComments(code: string): string {
  const tokens = pythonTokens(code);
  if (tokens === undefined) return code;
  let out = '';
  let before: PythonToken['kind'] = 'indent';
  let [lastLine, lastColumn] = [-1, 0];
  for (const { kind, text, line, column } of tokens) {
    if (line > lastLine) lastColumn = 0;
    if (column > lastColumn) out += ' '.repeat(column - lastColumn);
    const docstring = kind === 'string' && (before === 'indent' || before === 'newline' || column === 0);
    if (kind !== 'comment' && !docstring) out += text;
    before = kind;
    const lines = text.split('\n');
    [lastLine, lastColumn] = endsLine(kind)
      ? [line, column + text.length]
      : [line + lines.length - 1, lines.length === 1 ? column + text.length : lines.at(-1)!.length];
  }
  return withoutBlankLines(out);
}

/** `newline` ends a statement, `blank` a line that has none or that goes on. */
interface PythonToken {
  readonly kind: 'indent' | 'dedent' | 'newline' | 'blank' | 'comment' | 'string' | 'other';
  readonly text: string;
  /** Both count from 0. */
  readonly line: number;
  readonly column: number;
}
const endsLine = (kind: PythonToken['kind']) => kind === 'newline' || kind === 'blank';

const SPACES = /[ \t\f]*/y;
const TRIPLE = /(?:[rbuf]|br|rb|fr|rf)?("""|''')(?:\\.|[^\\])*?\1/isy;
const TRIPLE_START = /(?:[rbuf]|br|rb|fr|rf)?(?:"""|''')/iy;
const STRING = /(?:[rbuf]|br|rb|fr|rf)?(?:"(?:\\.|[^\n"\\])*"|'(?:\\.|[^\n'\\])*')/isy;
const COMMENT = /#[^\n]*/y;
const WORD = /[\p{L}\p{N}_]+|./suy;
const TAB = 8;

/** The tokens of Python's `tokenize`, as coarse as `withoutPythonComments` needs them; undefined where it fails. */
function pythonTokens(code: string): PythonToken[] | undefined {
  const tokens: PythonToken[] = [];
  const indents = [0];
  let [at, line, lineStart, brackets] = [0, 0, 0, 0];
  const match = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = at;
    return pattern.exec(code)?.[0];
  };
  const take = (kind: PythonToken['kind'], text: string) => {
    tokens.push({ kind, text, line, column: at - lineStart });
    for (let next = text.indexOf('\n'); next >= 0; next = text.indexOf('\n', next + 1)) {
      line++;
      lineStart = at + next + 1;
    }
    at += text.length;
  };
  let startsStatement = true;
  while (at < code.length) {
    const space = match(SPACES)!;
    if (startsStatement && brackets === 0 && at === lineStart) {
      const next = code[at + space.length];
      if (next === '#' || next === '\n') at += space.length;
      else if (next !== undefined) {
        const width = widthOf(space);
        if (width > indents.at(-1)!) {
          indents.push(width);
          take('indent', space);
        } else {
          at += space.length;
          for (; width < indents.at(-1)!; indents.pop()) {
            if (!indents.includes(width)) return undefined;
            take('dedent', '');
          }
        }
        startsStatement = false;
      } else at += space.length;
    } else at += space.length;
    if (at >= code.length) break;
    const comment = match(COMMENT);
    const string = match(TRIPLE) ?? (match(TRIPLE_START) === undefined ? match(STRING) : undefined);
    if (code[at] === '\n') {
      take(startsStatement || brackets > 0 ? 'blank' : 'newline', '\n');
      if (brackets === 0) startsStatement = true;
    } else if (code.startsWith('\\\n', at)) {
      at += 2;
      [line, lineStart] = [line + 1, at];
      if (at >= code.length) return undefined;
    } else if (comment !== undefined) take('comment', comment);
    else if (string !== undefined) take('string', string);
    else if (match(TRIPLE_START) !== undefined) return undefined;
    else {
      const word = match(WORD)!;
      if ('([{'.includes(word)) brackets++;
      else if (')]}'.includes(word)) brackets--;
      take('other', word);
    }
  }
  return brackets === 0 ? tokens : undefined;
}

/** The column that white space leads to: a tab goes on to the next multiple of 8, a form feed back to 0. */
function widthOf(space: string): number {
  let width = 0;
  for (const character of space) {
    if (character === '\t') width = (Math.floor(width / TAB) + 1) * TAB;
    else width = character === '\f' ? 0 : width + 1;
  }
  return width;
}
