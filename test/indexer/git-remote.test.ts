import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { gitRemote } from '../../services/indexer/git-remote.ts';

/** A folder with these files. */
async function folder(files: Readonly<Record<string, string>>): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-git-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  for (const [name, text] of Object.entries(files)) {
    await mkdir(dirname(join(dir, name)), { recursive: true });
    await writeFile(join(dir, name), text);
  }
  return dir;
}

const CONFIG = `[core]
\tbare = false
[remote "fork"]
\turl = https://example.com/me/shop.git
\tfetch = +refs/heads/*:refs/remotes/fork/*
[remote "origin"]
\turl = git@example.com:acme/shop.git
\turl = git@example.com:second/url.git
[branch "main"]
\tremote = origin
[url "https://"]
\tinsteadOf = git
`;

test('the remote of a checkout is the first URL of origin', async () => {
  expect(await gitRemote(await folder({ '.git/config': CONFIG }))).toBe('git@example.com:acme/shop.git');
});

test('without an origin the remote of a checkout is the first one', async () => {
  const dir = await folder({ '.git/config': CONFIG.replace('"origin"', '"other"') });
  expect(await gitRemote(dir)).toBe('https://example.com/me/shop.git');
});

test('a work tree and a submodule have the remote of the folder that their file .git points to', async () => {
  const dir = await folder({
    'main/.git/config': CONFIG,
    'main/.git/worktrees/w/commondir': '../..\n',
    'main/.git/modules/sub/config': CONFIG.replaceAll('acme', 'sub'),
    'w/.git': 'gitdir: ../main/.git/worktrees/w\n',
    'main/sub/.git': 'gitdir: ../.git/modules/sub\n',
  });
  expect(await gitRemote(join(dir, 'w'))).toBe('git@example.com:acme/shop.git');
  expect(await gitRemote(join(dir, 'main/sub'))).toBe('git@example.com:sub/shop.git');
});

test('a folder that is not a checkout, or has no remote, has none', async () => {
  expect(await gitRemote(await folder({ 'a.py': '' }))).toBeUndefined();
  expect(await gitRemote(await folder({ '.git/config': '[core]\n\turl = no\n' }))).toBeUndefined();
  expect(await gitRemote(await folder({ '.git': 'something else' }))).toBeUndefined();
});
