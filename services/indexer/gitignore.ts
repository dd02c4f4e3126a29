/**
 * .gitignore files as git reads them (gitignore(5)): with regard to case, and to the last rule that matches. Those of an
 * upload come from strangers, so no rule takes longer than its length times the path's; as a regular expression `**`, a few
 * times over, takes for ever. (Characters are UTF-16 units, where git's are bytes: `?` is all of an é.)
 */
import { ServingError } from '../lib/process/errors.ts';

export const GITIGNORE = '.gitignore';

/** In all .gitignore files of a repository together: large ones have some hundred. */
const MAX_RULES = 10_000;
/** Of all of them together: what a rule is made into takes a multiple of it. */
const MAX_CHARACTERS = 1024 * 1024;
/** Of one: with the longest of paths it takes 40 ms at most, and nobody else's turn comes meanwhile. */
const MAX_RULE_CHARACTERS = 1_024;

/** Any one character; any number of them. */
const ONE = Symbol('?');
const MANY = Symbol('*');
/** Any number of folders, or none. */
const FOLDERS = Symbol('**');

/** What one character may be, or {@link MANY}. */
type Token = string | typeof ONE | typeof MANY | ((character: string) => boolean);
/** What one name in a path may be; as text where only that will do. */
type Segment = string | readonly Token[];

interface Rule {
  /** Takes back what rules before it exclude. */
  readonly negated: boolean;
  readonly folderOnly: boolean;
  /** It is about the name alone, in whatever folder. */
  readonly anywhere: boolean;
  readonly segments: readonly (Segment | typeof FOLDERS)[];
}

interface Folder {
  /** Rules as they are written. */
  lines: readonly string[];
  /** Those that were asked for so far, by line; null for one that matches nothing. */
  rules: (Rule | null)[];
  readonly inner: Map<string, Folder>;
}

const emptyFolder = (): Folder => ({ lines: [], rules: [], inner: new Map() });

export class IgnoreRules {
  readonly #root = emptyFolder();
  #count = 0;
  #characters = 0;
  /** The folders that the last path lies in, from the root, as far as they are not excluded, and their rules. */
  readonly #open: { readonly name: string; readonly folder: Folder | undefined }[] = [];
  /** The one in the last of them that is. */
  #excluded: string | undefined;

  /**
   * @param folder where the file lies, with a slash at its end, or '' for the root. Of two the later one counts.
   * @throws ServingError payload_too_large for too many rules, or too long ones.
   */
  add(folder: string, text: string): void {
    let at = this.#root;
    for (const name of folder.split('/').slice(0, -1)) {
      const inner = at.inner.get(name) ?? emptyFolder();
      at.inner.set(name, inner);
      at = inner;
    }
    const lines: string[] = [];
    for (const ended of text.split('\n')) {
      const line = ended.replace(/\r$/, '');
      if (line === '' || line.startsWith('#')) continue;
      if (line.length > MAX_RULE_CHARACTERS) throw tooLarge(`${MAX_RULE_CHARACTERS} characters in a rule`);
      this.#characters += line.length;
      if (++this.#count > MAX_RULES) throw tooLarge(`${MAX_RULES} rules`);
      if (this.#characters > MAX_CHARACTERS) throw tooLarge(`${MAX_CHARACTERS} characters of rules`);
      lines.push(line);
    }
    at.lines = lines;
    at.rules = [];
    this.#open.length = 0;
    this.#excluded = undefined;
  }

  /** Whether a file, or a folder (with a slash at its end), or one that it lies in, is excluded. */
  excludes(path: string): boolean {
    const deciding = this.decide(path);
    for (;;) {
      const { done, value } = deciding.next();
      if (done) return value;
    }
  }

  /**
   * As {@link excludes}, rule by rule, for who has other things to do meanwhile; one path at a time. Quickest for paths in
   * order: what was decided of folders is kept until one comes that lies elsewhere.
   */
  *decide(path: string): Generator<undefined, boolean> {
    if (this.#count === 0) return false;
    const isFolder = path.endsWith('/');
    const names = (isFolder ? path.slice(0, -1) : path).split('/');
    const last = names.length - 1;
    let depth = 0;
    while (depth < last && this.#open[depth]?.name === names[depth]) depth++;
    if (depth < last && depth === this.#open.length && names[depth] === this.#excluded) return true;
    this.#open.length = depth;
    this.#excluded = undefined;
    for (; depth < last; depth++) {
      const name = names[depth] as string;
      // Nothing comes back that lies in an excluded folder.
      if (yield* this.#decideOne(names, depth, true)) {
        this.#excluded = name;
        return true;
      }
      this.#open.push({ name, folder: this.#folder(depth)?.inner.get(name) });
    }
    return yield* this.#decideOne(names, last, isFolder);
  }

  /** Of `names[last]` in folders that are open: the deepest .gitignore with an opinion decides, and there its last rule. */
  *#decideOne(names: readonly string[], last: number, isFolder: boolean): Generator<undefined, boolean> {
    for (let depth = last; depth >= 0; depth--) {
      const { lines, rules } = this.#folder(depth) ?? { lines: [], rules: [] };
      for (let i = lines.length - 1; i >= 0; i--) {
        rules[i] ??= parse(lines[i] as string) ?? null;
        const rule = rules[i];
        if (rule && matches(rule, names, depth, last, isFolder)) return !rule.negated;
        yield;
      }
    }
    return false;
  }

  #folder(depth: number): Folder | undefined {
    return depth === 0 ? this.#root : this.#open[depth - 1]?.folder;
  }
}

const tooLarge = (what: string) => new ServingError('payload_too_large', `the .gitignore files hold more than ${what}`);

/** @param from names before it lead to the rule's own folder. */
function matches(rule: Rule, names: readonly string[], from: number, last: number, isFolder: boolean): boolean {
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
 * Whether parts of a pattern fit places [from, end), one each; those that are `many` fit any number of them. The first fit
 * for what stands between two of these leaves the most for what comes after, so only the last one is ever tried again.
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

/** A line of a .gitignore that is no comment; undefined for one that matches nothing. */
function parse(line: string): Rule | undefined {
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
  // At the end it stands for what lies in the folder, not for the folder itself.
  if (segments.at(-1) === FOLDERS) segments.push([MANY]);
  return { negated, folderOnly, anywhere, segments };
}

/** Where the spaces begin that do not count: those at the end, but for one that is escaped. */
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

/** undefined where git finds the pattern malformed: it matches nothing. */
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
      const found = classOf(pattern, at + 1);
      if (found === undefined) return undefined;
      tokens.push(found.has);
      at = found.end;
    } else tokens.push(character);
  }
  return tokens;
}

const CLASSES: Record<string, RegExp> = {
  alnum: /[A-Za-z0-9]/,
  alpha: /[A-Za-z]/,
  blank: /[ \t]/,
  // biome-ignore lint/suspicious/noControlCharactersInRegex: it is the class of these
  cntrl: /[\x00-\x1f\x7f]/,
  digit: /[0-9]/,
  graph: /[\x21-\x7e]/,
  lower: /[a-z]/,
  print: /[\x20-\x7e]/,
  punct: /[!-/:-@[-`{-~]/,
  space: /[\t-\r ]/,
  upper: /[A-Z]/,
  xdigit: /[0-9A-Fa-f]/,
};

/** What stands in brackets. @param at after the opening one. */
function classOf(pattern: string, at: number): { has: (character: string) => boolean; end: number } | undefined {
  const negated = pattern[at] === '!' || pattern[at] === '^';
  if (negated) at++;
  const members: ((character: string) => boolean)[] = [];
  let before = ''; // what a range may begin with
  let closing = at; // the next bracket that closes
  for (let first = true; first || pattern[at] !== ']'; first = false, at++) {
    let character = pattern[at];
    if (character === undefined) return undefined;
    const next = pattern[at + 1];
    if (character === '[' && next === ':') {
      if (closing < at + 2) closing = pattern.indexOf(']', at + 2);
      if (closing < 0) return undefined;
      if (closing > at + 2 && pattern[closing - 1] === ':') {
        const known = CLASSES[pattern.slice(at + 2, closing - 1)];
        if (known === undefined) return undefined;
        members.push((each) => known.test(each));
        at = closing;
        before = '';
        continue;
      }
    }
    if (character === '-' && before !== '' && next !== undefined && next !== ']') {
      character = pattern[++at] === '\\' ? pattern[++at] : pattern[at];
      if (character === undefined) return undefined;
      const [low, high] = [before, character];
      members.push((each) => low <= each && each <= high);
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
