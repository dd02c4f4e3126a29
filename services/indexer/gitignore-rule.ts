/**
 * One line of a .gitignore (gitignore(5)): parsed, and matched against a path.
 *
 * This is a matcher of our own because uploads come from strangers: the libraries `ignore` and `picomatch` compile
 * patterns to regular expressions, and one with a few `**` in it takes practically for ever. Here a rule takes at most
 * its length times the path's length. The library `ignore` remains the oracle that the tests compare this matcher with.
 *
 * A character is a UTF-16 unit here and a byte in git: `?` matches all of an é.
 */

/** Matches any one character. */
const ONE = Symbol('?');
/** Matches any number of characters. */
const MANY = Symbol('*');
/** Matches any number of folders, or none. */
const FOLDERS = Symbol('**');

/** Matches one character, or any number of them ({@link MANY}). */
type Token = string | typeof ONE | typeof MANY | ((character: string) => boolean);
/** Matches one name in a path: a string matches only itself. */
type Segment = string | readonly Token[];

export interface Rule {
  /** The rule takes back what rules before it exclude. */
  readonly negated: boolean;
  readonly folderOnly: boolean;
  /** The rule is about the last name of a path alone, in whatever folder. */
  readonly anywhere: boolean;
  readonly segments: readonly (Segment | typeof FOLDERS)[];
}

/**
 * Whether the rule is about the path `names[0…last]`.
 * @param from number of leading names that lead to the rule's own folder.
 */
export function matchesRule(
  rule: Rule,
  names: readonly string[],
  from: number,
  last: number,
  isFolder: boolean,
): boolean {
  if (rule.folderOnly && !isFolder) return false;
  if (rule.anywhere) return isName(rule.segments[0] as Segment, names[last] as string);
  const { segments } = rule;
  return matchesAll(segments, FOLDERS, from, last + 1, (s, n) => isName(segments[s] as Segment, names[n] as string));
}

function isName(segment: Segment, name: string): boolean {
  if (typeof segment === 'string') return segment === name;
  return matchesAll(segment, MANY, 0, name.length, (t, n) => isCharacter(segment[t] as Token, name[n] as string));
}

const isCharacter = (token: Token, character: string) =>
  token === ONE || (typeof token === 'function' ? token(character) : token === character);

/**
 * Whether the parts of a pattern fit the places [from, end), one place each; a part that is `many` fits any number of
 * places. The first fit for what stands between two `many` leaves the most places for the rest, so only the last `many`
 * is ever tried again.
 */
function matchesAll<T>(
  parts: readonly T[],
  many: T,
  from: number,
  end: number,
  fits: (part: number, place: number) => boolean,
): boolean {
  let [part, place] = [0, from];
  let [retryPart, retryPlace] = [-1, from];
  while (place < end) {
    if (part < parts.length && parts[part] === many) {
      retryPart = ++part;
      retryPlace = place;
    } else if (part < parts.length && fits(part, place)) {
      part++;
      place++;
    } else if (retryPart >= 0) {
      part = retryPart;
      place = ++retryPlace;
    } else return false;
  }
  while (parts[part] === many) part++;
  return part === parts.length;
}

/** Parses a line that is not a comment; undefined if it matches nothing. */
export function parseRule(line: string): Rule | undefined {
  let pattern = line.slice(0, endOf(line));
  const negated = pattern.startsWith('!');
  if (negated) pattern = pattern.slice(1);
  const folderOnly = pattern.endsWith('/');
  if (folderOnly) pattern = pattern.slice(0, -1);
  const anywhere = !pattern.includes('/');
  const tokens = tokensOf(pattern.startsWith('/') ? pattern.slice(1) : pattern);
  if (tokens === undefined || tokens.length === 0) return undefined;
  const parts: Token[][] = [[]];
  for (const token of tokens) {
    if (token === '/') parts.push([]);
    else parts.at(-1)?.push(token);
  }
  const segments = parts.map((part) => (!anywhere && isFolders(part) ? FOLDERS : asSegment(part)));
  // At the end, ** stands for what lies in the folder and not for the folder itself.
  if (segments.at(-1) === FOLDERS) segments.push([MANY]);
  return { negated, folderOnly, anywhere, segments };
}

/** The end of a line without its trailing spaces, which do not count unless they are escaped. */
function endOf(line: string): number {
  let end = line.length;
  while (end > 0 && line[end - 1] === ' ') end--;
  let escapes = 0;
  while (line[end - 1 - escapes] === '\\') escapes++;
  return end < line.length && escapes % 2 === 1 ? end + 1 : end;
}

const isFolders = (part: readonly Token[]) => part.length > 1 && part.every((token) => token === MANY);

function asSegment(part: readonly Token[]): Segment {
  if (part.every((token) => typeof token === 'string')) return part.join('');
  return part.filter((token, i) => token !== MANY || part[i - 1] !== MANY);
}

/** Undefined if git finds the pattern malformed: it matches nothing then. */
function tokensOf(pattern: string): Token[] | undefined {
  const tokens: Token[] = [];
  for (let at = 0; at < pattern.length; at++) {
    const character = pattern[at] as string;
    if (character === '*') tokens.push(MANY);
    else if (character === '?') tokens.push(ONE);
    else if (character === '\\') {
      const escaped = pattern[++at];
      if (escaped === undefined) return undefined;
      tokens.push(escaped);
    } else if (character === '[') {
      const found = bracketOf(pattern, at + 1);
      if (found === undefined) return undefined;
      tokens.push(found.has);
      at = found.end;
    } else tokens.push(character);
  }
  return tokens;
}

const isBetween = (low: string, high: string) => (character: string) => low <= character && character <= high;
const isDigit = isBetween('0', '9');
const isUpper = isBetween('A', 'Z');
const isLower = isBetween('a', 'z');
const isLetter = (character: string) => isUpper(character) || isLower(character);
const isLetterOrDigit = (character: string) => isLetter(character) || isDigit(character);
const isVisible = isBetween('!', '~');

/** The named classes of POSIX, `[:alnum:]` and so on, in ASCII. */
const CLASSES = new Map<string, (character: string) => boolean>([
  ['alnum', isLetterOrDigit],
  ['alpha', isLetter],
  ['blank', (character) => character === ' ' || character === '\t'],
  ['cntrl', (character) => character < ' ' || character === '\x7f'],
  ['digit', isDigit],
  ['graph', isVisible],
  ['lower', isLower],
  ['print', isBetween(' ', '~')],
  ['punct', (character) => isVisible(character) && !isLetterOrDigit(character)],
  ['space', (character) => character === ' ' || isBetween('\t', '\r')(character)],
  ['upper', isUpper],
  ['xdigit', (character) => isDigit(character) || isBetween('A', 'F')(character) || isBetween('a', 'f')(character)],
]);

/**
 * Parses a bracket expression such as `[a-z]`.
 * @param at where it begins, after the opening bracket.
 * @returns what it contains, and where its closing bracket is; undefined if it is malformed.
 */
function bracketOf(pattern: string, at: number): { has: (character: string) => boolean; end: number } | undefined {
  const negated = pattern[at] === '!' || pattern[at] === '^';
  if (negated) at++;
  const members: ((character: string) => boolean)[] = [];
  let before = ''; // the character with which a range may begin
  let closing = at; // the next closing bracket
  for (let first = true; first || pattern[at] !== ']'; first = false, at++) {
    let character = pattern[at];
    if (character === undefined) return undefined;
    const next = pattern[at + 1];
    if (character === '[' && next === ':') {
      if (closing < at + 2) closing = pattern.indexOf(']', at + 2);
      if (closing < 0) return undefined;
      if (closing > at + 2 && pattern[closing - 1] === ':') {
        const known = CLASSES.get(pattern.slice(at + 2, closing - 1));
        if (known === undefined) return undefined;
        members.push(known);
        at = closing;
        before = '';
        continue;
      }
    }
    if (character === '-' && before !== '' && next !== undefined && next !== ']') {
      character = pattern[++at] === '\\' ? pattern[++at] : pattern[at];
      if (character === undefined) return undefined;
      members.push(isBetween(before, character));
      before = '';
      continue;
    }
    if (character === '\\') character = pattern[++at];
    if (character === undefined) return undefined;
    const member = character;
    members.push((each) => each === member);
    before = member;
  }
  return { has: (character) => character !== '/' && members.some((has) => has(character)) !== negated, end: at };
}
