"""A user's git configuration at its worst: whatever could change what the tool computes."""

from __future__ import annotations


HOSTILE = """\
[commit]
    gpgSign = true
    template = /nonexistent/template
    cleanup = scissors
[gpg]
    program = false
[core]
    autocrlf = true
    eol = crlf
    hooksPath = {hooks}
    fsmonitor = {hooks}/fsmonitor
    attributesFile = {hooks}/attributes
    excludesFile = {hooks}/excludes
    abbrev = 5
    quotePath = true
[diff]
    noprefix = true
    external = false
    renames = copies
    algorithm = patience
    context = 1
    interHunkContext = 40
    suppressBlankEmpty = true
    orderFile = {hooks}/order
[am]
    threeWay = true
    keepcr = true
[apply]
    whitespace = fix
    ignoreWhitespace = change
[format]
    signature = hostile
    attach = true
    numbered = true
    subjectPrefix = HOSTILE
    coverLetter = true
    signOff = true
    pretty = oneline
    thread = true
    useAutoBase = true
    suffix = .txt
    encodeEmailHeaders = true
[log]
    showSignature = true
    mailmap = true
[init]
    templateDir = {hooks}/template
    defaultBranch = hostile
[merge]
    conflictStyle = diff3
    ff = only
[user]
    useConfigOnly = true
[submodule]
    recurse = true
[status]
    showUntrackedFiles = all
[url "{upstream}"]
    insteadOf = {url}
"""
