/** The recorded editing session that `bench typing` replays. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const SESSION = join(PACKAGE_ROOT, 'bench', 'data', 'typing-session.jsonl');

const header = z.strictObject({ path: z.string(), line: z.int().min(0), note: z.string() });
const event = z.union([
  z.strictObject({ at_ms: z.number(), insert: z.string().min(1) }),
  z.strictObject({ at_ms: z.number(), delete: z.int().min(1) }),
]);

/** The text before and after the cursor once a key has been pressed. */
export interface Keystroke {
  readonly atMs: number;
  readonly before: string;
  readonly after: string;
}

export interface Session {
  /** Path of the edited file within the repository. */
  readonly path: string;
  readonly keystrokes: readonly Keystroke[];
}

/**
 * Replays a session into the text that the editor holds after each keystroke.
 * @param lines the recorded session: a header, and one line per keystroke.
 * @param source text of the file before the session.
 */
function replaySession(lines: string, source: string): Session {
  const [first, ...rest] = lines.split('\n').filter((line) => line !== '');
  const { path, line } = header.parse(JSON.parse(first ?? '{}'));
  const sourceLines = source.split('\n');
  const after = sourceLines.slice(line).join('\n');
  let before = sourceLines
    .slice(0, line)
    .map((text) => `${text}\n`)
    .join('');
  const keystrokes = rest.map((text) => {
    const change = event.parse(JSON.parse(text));
    before = 'insert' in change ? before + change.insert : before.slice(0, -change.delete);
    return { atMs: change.at_ms, before, after };
  });
  return { path, keystrokes };
}

/**
 * Loads a recorded session: the one that ships, unless a file is given.
 * @param dir folder of the repository that it edits.
 * @param keystrokes number of the first keystrokes to keep.
 * @param file of another recorded session.
 */
export async function loadSession(
  dir: string,
  keystrokes = Number.POSITIVE_INFINITY,
  file = SESSION,
): Promise<Session> {
  const lines = await readFile(file, 'utf8');
  const { path } = header.parse(JSON.parse(lines.slice(0, lines.indexOf('\n'))));
  const session = replaySession(lines, await readFile(join(dir, path), 'utf8'));
  return { path, keystrokes: session.keystrokes.slice(0, keystrokes) };
}
