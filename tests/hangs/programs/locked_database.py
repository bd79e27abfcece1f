"""A write to a database that another process has locked."""

import os
import sqlite3
import subprocess
import sys
import tempfile

from aiotimer import expires

HOLDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("BEGIN IMMEDIATE")
print(flush=True)
sys.stdin.read()
"""


def save(reward: float) -> None:
    database.execute("INSERT INTO rewards VALUES (?)", (reward,))  # here


path = os.path.join(tempfile.mkdtemp(dir="/dev/shm"), "rewards.db")
database = sqlite3.connect(path, timeout=1000)
database.execute("CREATE TABLE rewards (reward)")
holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=-1, stdout=-1)
holder.stdout.readline()
with expires(after=1):
    save(0.5)
