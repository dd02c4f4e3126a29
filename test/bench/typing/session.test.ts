import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { loadSession } from '../../../bench/typing/session.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';

const SHOP = join(PACKAGE_ROOT, 'examples', 'shop');

describe('a recorded typing session', () => {
  it('a session is replayed into the text that the editor holds after each keystroke', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-session-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    const lines = [
      '{"path": "a.py", "line": 1, "note": ""}',
      '{"at_ms": 5, "insert": "ab"}',
      '{"at_ms": 9, "delete": 1}',
    ];
    await writeFile(join(dir, 'a.py'), 'one\ntwo\n');
    await writeFile(join(dir, 'session.jsonl'), lines.join('\n'));
    const session = await loadSession(dir, undefined, join(dir, 'session.jsonl'));
    expect(session).toEqual({
      path: 'a.py',
      keystrokes: [
        { atMs: 5, before: 'one\nab', after: 'two\n' },
        { atMs: 9, before: 'one\na', after: 'two\n' },
      ],
    });
  });

  it('the session that ships ends in a method that the file does not have', async () => {
    const { path, keystrokes } = await loadSession(SHOP);
    expect(path).toBe('shop/cart.py');
    expect(keystrokes.at(-1)!.before).toMatch(/self\.coupon_code = other\.coupon_code\n\n$/);
    expect(keystrokes.map(({ atMs }) => atMs)).toEqual(keystrokes.map(({ atMs }) => atMs).toSorted((a, b) => a - b));
  });
});
