/**
 * The .gitignore files of a repository, read as git reads them: names are compared with regard to case, the file
 * deepest in the tree that has an opinion decides, and within a file its last rule that matches. How a rule is matched,
 * and why no library does it, stands in gitignore-rule.ts.
 */
import { ServingError } from '../lib/process/errors.ts';
import { matchesRule, parseRule, type Rule } from './gitignore-rule.ts';

export const GITIGNORE = '.gitignore';

/** Rules in all .gitignore files of a repository together: large repositories have some hundred. */
const MAX_RULES = 10_000;
/** Characters of all rules together: a parsed rule takes a multiple of its text in memory. */
const MAX_CHARACTERS = 1024 * 1024;
/** Characters of one rule: matching it takes at most 40 ms for the longest path, and nothing else runs meanwhile. */
const MAX_RULE_CHARACTERS = 1_024;

interface Folder {
  /** Rules as they are written. */
  lines: readonly string[];
  /** Rules that were needed so far, by line; null for a rule that matches nothing. */
  rules: (Rule | null)[];
  readonly inner: Map<string, Folder>;
}

const emptyFolder = (): Folder => ({ lines: [], rules: [], inner: new Map() });

export class IgnoreRules {
  readonly #root = emptyFolder();
  #count = 0;
  #characters = 0;
  /**
   * The folders on the way to the last path, from the root down to the first one that is excluded, with their rules.
   */
  readonly #open: { readonly name: string; readonly folder: Folder | undefined }[] = [];
  /** The name of the folder in the last of them that is excluded. */
  #excluded: string | undefined;

  /**
   * Adds a .gitignore file; it replaces one that was added for the same folder.
   * @param folder where the file lies, with a slash at its end, or '' for the root.
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
      const line = ended.endsWith('\r') ? ended.slice(0, -1) : ended;
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

  /** Whether a file, or a folder (with a slash at its end), or a folder that it lies in, is excluded. */
  excludes(path: string): boolean {
    const deciding = this.decide(path);
    for (;;) {
      const { done, value } = deciding.next();
      if (done) return value;
    }
  }

  /**
   * Decides like {@link excludes}, and yields after every rule, for callers that share the event loop. Only one path
   * may be decided at a time. It is quickest for paths in order: what was decided about folders is kept until a path
   * comes that lies elsewhere.
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
      // No rule takes back what lies in an excluded folder.
      if (yield* this.#decideOne(names, depth, true)) {
        this.#excluded = name;
        return true;
      }
      this.#open.push({ name, folder: this.#folder(depth)?.inner.get(name) });
    }
    return yield* this.#decideOne(names, last, isFolder);
  }

  /** Decides about `names[last]`, all of whose folders are open. */
  *#decideOne(names: readonly string[], last: number, isFolder: boolean): Generator<undefined, boolean> {
    for (let depth = last; depth >= 0; depth--) {
      const { lines, rules } = this.#folder(depth) ?? { lines: [], rules: [] };
      for (let i = lines.length - 1; i >= 0; i--) {
        rules[i] ??= parseRule(lines[i] as string) ?? null;
        const rule = rules[i];
        if (rule && matchesRule(rule, names, depth, last, isFolder)) return !rule.negated;
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
