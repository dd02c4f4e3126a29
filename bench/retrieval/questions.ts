/**
 * Questions about held-out lines of real functions: the code before and after the lines, and the chunks of other files
 * that define what the lines use. A retriever answers well if it finds one of those chunks without having seen the
 * lines.
 */
import { identifiers } from '../../services/lib/rag/chunk.ts';
import type { Repository } from './corpus.ts';

export interface Question {
  readonly path: string;
  readonly before: string;
  readonly after: string;
  /** For each identifier that the held-out lines use: the ordinals of the chunks that hold its definition. */
  readonly answers: readonly (readonly number[])[];
}

/** Number of lines that are held out, and number of lines of the function before them. */
const HOLE = 3;
const LEAD = 3;
/** Upper bounds on the questions about one repository and about one file. */
const PER_REPOSITORY = 150;
const PER_FILE = 4;

const DEFINITIONS = [
  /^\s*(?:async\s+)?def\s+(\w+)/,
  /^\s*(?:export\s+)?(?:default\s+)?(?:abstract\s+)?(?:class|interface)\s+(\w+)/,
  /^\s*(?:export\s+)?(?:default\s+)?(?:async\s+)?function\s*\*?\s*(\w+)/,
  /^\s*(?:export\s+)?const\s+(\w+)\s*=\s*(?:async\s*)?(?:\(|function\b)/,
];
const FUNCTION =
  /^\s*(?:async\s+)?(?:def\s+\w+|(?:export\s+)?(?:async\s+)?function\b|(?:static\s+|async\s+)*\w+\s*\([^)]*\)\s*\{)/;

const definedAt = (line: string) => DEFINITIONS.map((pattern) => pattern.exec(line)?.[1]).find((name) => name);

/** Names that exactly one file defines, with the path of the file and the lines (counted from 1). */
function definitions({ files }: Repository): Map<string, { path: string; lines: number[] }> {
  const found = new Map<string, { path: string; lines: number[] }>();
  const ambiguous = new Set<string>();
  for (const { path, text } of files) {
    for (const [i, line] of text.split('\n').entries()) {
      const name = definedAt(line);
      if (!name || name.length < 4) continue;
      const known = found.get(name);
      if (!known) found.set(name, { path, lines: [i + 1] });
      else if (known.path === path) known.lines.push(i + 1);
      else ambiguous.add(name);
    }
  }
  for (const name of ambiguous) found.delete(name);
  return found;
}

export function questionsOf(repository: Repository): Question[] {
  const defined = definitions(repository);
  const ordinals = new Map<string, number[]>();
  const chunksOf = grouped(repository);
  for (const [name, { path, lines }] of defined) {
    const holding = (chunksOf.get(path) ?? []).filter(([, { startLine, endLine }]) =>
      lines.some((line) => line >= startLine && line <= endLine),
    );
    ordinals.set(
      name,
      holding.map(([ordinal]) => ordinal),
    );
  }
  const questions = repository.files.flatMap(({ path, text }) => fileQuestions(path, text, defined, ordinals));
  const step = Math.max(1, questions.length / PER_REPOSITORY);
  return Array.from({ length: Math.floor(questions.length / step) }, (_, i) => questions[Math.floor(i * step)]!);
}

function grouped({ chunks }: Repository) {
  const byPath = new Map<string, [number, Repository['chunks'][number]][]>();
  for (const [ordinal, chunk] of chunks.entries()) {
    const group = byPath.get(chunk.path) ?? [];
    group.push([ordinal, chunk]);
    byPath.set(chunk.path, group);
  }
  return byPath;
}

function fileQuestions(
  path: string,
  text: string,
  defined: ReadonlyMap<string, { readonly path: string }>,
  ordinals: ReadonlyMap<string, readonly number[]>,
): Question[] {
  const lines = text.split('\n');
  const questions: Question[] = [];
  let functionStart = Number.NEGATIVE_INFINITY;
  for (let at = 0; at + HOLE <= lines.length && questions.length < PER_FILE; at++) {
    if (FUNCTION.test(lines[at]!)) functionStart = at;
    if (at - functionStart !== LEAD) continue;
    const before = lines.slice(0, at).join('\n');
    const hole = identifiers(lines.slice(at, at + HOLE).join('\n'));
    const used = hole.filter((name) => defined.has(name) && defined.get(name)?.path !== path);
    const answers = used.map((name) => ordinals.get(name) ?? []).filter((chunks) => chunks.length > 0);
    if (answers.length === 0) continue;
    questions.push({ path, before: `${before}\n`, after: `\n${lines.slice(at + HOLE).join('\n')}`, answers });
  }
  return questions;
}
